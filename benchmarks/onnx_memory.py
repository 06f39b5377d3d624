"""Peak memory of reading and of compiling an ONNX file, as a multiple of the file's size.

python benchmarks/onnx_memory.py [MEGABYTES]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH = 1024
LIMIT = 3.0
STAGES = ("load", "compile")


def network(megabytes: int) -> onnx.ModelProto:
    """Layers of MatMul and Relu whose weights fill so many megabytes."""
    count = max(1, megabytes * 2**20 // (4 * WIDTH * WIDTH))
    draws = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(count):
        weight = draws.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5
        weights.append(numpy_helper.from_array(weight, f"layers.{i}.weight"))
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"layers.{i}.weight"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"h{i + 1}"]))
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("h0", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"h{count}", onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def write(folder: Path, megabytes: int) -> dict[str, Path]:
    """The same network as one file, with its weights beside it, and with functions to inline; and a small one."""
    model = network(megabytes)
    paths = {name: folder / f"{name}.onnx" for name in ("inside", "external", "functions", "small")}
    onnx.save(network(4), paths["small"])
    onnx.save(model, paths["inside"])
    onnx.save(model, paths["external"], save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(paths["inside"])
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("own", "Activation", ["x"], ["y"], body, model.opset_import))
    model.opset_import.append(helper.make_opsetid("own", 1))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.domain, node.op_type = "own", "Activation"
    onnx.save(model, paths["functions"])
    return paths


def kilobytes(key: str) -> int:
    """A line of what Linux says of this process's memory."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)


def measure(stage: str, path: Path, small: Path) -> None:
    """Print by how many bytes this process grew at most, after a small network has loaded what is loaded once."""
    import pccompile

    work = pccompile.load_onnx if stage == "load" else pccompile.compile
    work(str(small))
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    kept = work(str(path))
    print((kilobytes("VmHWM") - before) * 1024, flush=True)
    del kept


def growth(stage: str, path: Path, small: Path) -> int:
    """By how many bytes a fresh process grows at most while it reads or compiles a file."""
    command = [sys.executable, __file__, "--measure", stage, str(path), str(small)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def ratios(folder: Path, megabytes: int) -> Iterator[tuple[str, str, float]]:
    """For each kind of file and each stage: how many times the size of the weights the memory grew."""
    paths = write(folder, megabytes)
    small = paths.pop("small")
    size = paths["inside"].stat().st_size
    for name, path in paths.items():
        for stage in STAGES:
            yield name, stage, growth(stage, path, small) / size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", nargs="?", type=int, default=100)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        stage, path, small = options.measure
        measure(stage, Path(path), Path(small))
        return 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, stage, times in ratios(Path(folder), options.megabytes):
            worst = max(worst, times)
            print(f"{stage} of {options.megabytes} MB, {name}: {times:.2f} times the file", flush=True)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
