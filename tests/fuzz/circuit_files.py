"""Netlists, chips and data files that are wrong in any way, a seed each."""

from __future__ import annotations

import functools
import io
import json
import random
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from netlist.nets import NETS, late, net, stored
from safetensors.numpy import save

from fuzz.mutations import TEXT, WHOLE, change_record, damaged
from pccompile.backends.netlist import Netlist

CHIPS = ("loihi1", "mesh")
ACTIONS = (
    [], [], ["--simulate"], ["--simulate", "--learn"], ["--simulate", "--bits", "8:16"], ["--json", "--simulate"],
    ["--export", "nengo", "-o", "out"], ["--export", "verilog", "-o", "out"], ["--export", "nir", "-o", "out"],
    ["--export", "sana-fe", "-o", "out"], ["-o", "out"], ["--apply", "flatten"], ["--apply", "untie"],
    ["--apply", "on-off", "--simulate"], ["--apply", "split-fan-in=2"], ["--bits", "4:8", "-o", "out"],
)  # fmt: skip
YAMLS = (
    "2001-99-99", "!!int abc", "9" * 5000, "!!python/object/apply:os.system [id]", "&a [*a]", "*b", "{", "1e999",
    ".nan", "0o9", "!!timestamp x", "!!float z", "!!binary ***", "? x", "- - - -", "!!set {a}", "<<: 1",
)  # fmt: skip


@functools.cache
def base(name: str, form: int) -> tuple[str, bytes]:
    """The description and the tensors of a circuit as it is, with delays, or in fixed point."""
    circuit: Netlist = net(name) if form == 0 else late(name) if form == 1 else net(name).quantise(8, 16)
    description, tensors = stored(circuit)
    return description.decode(), tensors


def write(seed: int, folder: Path) -> list[list[str]]:
    """Write the files of a seed; return the command lines to try."""
    draw = random.Random(seed)
    kind = draw.choice(("netlist", "netlist", "netlist", "text", "tensors", "chip", "data"))
    text, tensors = base(draw.choice(list(NETS)), draw.choice((0, 0, 1, 2)))
    record = json.loads(text)
    if kind == "netlist":
        for _ in range(draw.choice((1, 1, 2, 3))):
            change_record(draw, record)
        text = json.dumps(record)
    data = damaged(draw, text.encode()) if kind == "text" else text.encode()
    (folder / "m.pcnet.json").write_bytes(data)
    (folder / "m.safetensors").write_bytes(damaged(draw, tensors) if kind == "tensors" else tensors)
    action = list(draw.choice(ACTIONS))
    if kind == "chip":
        (folder / "chip.yaml").write_bytes(chip(draw))
        action = ["--chip", "chip.yaml", *draw.choice(([], ["--report", "out/page.html"]))]
    if kind == "data":
        suffix, content = tensors_for(draw, record)
        (folder / f"data.{suffix}").write_bytes(content)
        action = ["--simulate", "--data", f"data.{suffix}"]
    return [["m.pcnet.json", *action]]


def chip(draw: random.Random) -> bytes:
    """A chip's description, wrong."""
    file = resources.files("pccompile.backends.netlist") / "chips" / f"{draw.choice(CHIPS)}.yaml"
    data = file.read_bytes()
    kind = draw.randrange(3)
    if kind == 0:
        return damaged(draw, data)
    if kind == 1:
        lines = data.decode().splitlines()
        at = draw.randrange(len(lines))
        lines[at] = f"{lines[at].partition(':')[0]}: {draw.choice((*YAMLS, *TEXT, *map(str, WHOLE)))}"
        return "\n".join(lines).encode()
    record = yaml.safe_load(data)
    for _ in range(draw.randint(1, 3)):
        change_record(draw, record)
    return yaml.safe_dump(record).encode()


def tensors_for(draw: random.Random, record: dict) -> tuple[str, bytes]:
    """A file of inputs and targets, right or wrong."""
    rng = np.random.default_rng(draw.randrange(2**32))
    arrays: dict[str, np.ndarray] = {}
    for ports in ("inputs", "targets", "clamps"):
        for name, port in record.get(ports, {}).items():
            array = rng.standard_normal(port["shape"]) if not port.get("encode") else rng.integers(0, 2, port["shape"])
            kind = draw.randrange(12)
            if kind == 0:
                continue
            if kind == 1:
                array = array.astype(draw.choice([np.float16, np.int8, np.uint64, np.bool_, np.int64, np.float32]))
            elif kind == 2:
                array = array[..., None]
            elif kind == 3:
                array = np.full(array.shape, draw.choice([np.nan, np.inf, -1, 1e300, 2**40]))
            elif kind == 4:
                array = array.reshape(-1)[:-1]
            elif kind == 5:
                array = np.zeros((0, *array.shape))
            arrays[draw.choice(TEXT) if kind == 6 else name.partition("#")[0]] = np.ascontiguousarray(array)
    if draw.random() < 0.5:
        content = save(arrays)
        suffix = "safetensors"
    else:
        file = io.BytesIO()
        if draw.random() < 0.1:
            arrays["text"] = np.array(["a", "b"]) if draw.random() < 0.5 else np.array([{}, 1], dtype=object)
        draw.choice((np.savez, np.savez_compressed))(file, **{k or "arr": a for k, a in arrays.items() if "/" not in k})
        content, suffix = file.getvalue(), "npz"
    return suffix, damaged(draw, content) if draw.random() < 0.3 else content
