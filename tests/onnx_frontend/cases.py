"""Runs the ONNX project's own operator cases: `python -m onnx_frontend.cases [name]` from tests/ runs all of them."""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx


def node_cases() -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def as_torch(value):
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, list):
        return [as_torch(v) for v in value]
    array = np.array(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)


def numbers(value: torch.Tensor) -> np.ndarray:
    value = value.detach()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def differs(case, wanted, got) -> str:
    """What is wrong with an output, or nothing."""
    if isinstance(wanted, list):
        if len(wanted) != len(got):
            return f"{len(got)} elements instead of {len(wanted)}"
        return next(filter(None, (differs(case, w, g) for w, g in zip(wanted, got, strict=True))), "")
    expected = numbers(as_torch(wanted))
    actual = numbers(got)
    if expected.shape != actual.shape:
        return f"shape {actual.shape} instead of {expected.shape}"
    if as_torch(wanted).dtype != got.dtype:
        return f"{got.dtype} instead of {as_torch(wanted).dtype}"
    try:
        np.testing.assert_allclose(actual, expected, rtol=max(case.rtol, 1e-5), atol=max(case.atol, 1e-6))
    except AssertionError as error:
        return str(error).strip().replace("\n", " ")[:200]
    return ""


def run(case) -> tuple[str, str]:
    """(`pass`, `refused`, `fail`), and why."""
    model = case.model if case.model is not None else onnx.load(f"{case.model_dir}/model.onnx")
    try:
        module = load_onnx(model)
    except CompileError as error:
        return "refused", str(error).splitlines()[0]
    names = [t.name for t in module.input_types]
    for inputs, outputs in case.data_sets:
        given = dict(zip([i.name for i in model.graph.input], inputs, strict=False))
        try:
            with torch.no_grad():
                got = module(*(as_torch(given[n]) for n in names))
        except CompileError as error:
            return "fail", str(error).replace("\n", " ")[:250]
        got = got if isinstance(got, tuple) else (got,)
        for wanted, value in zip(outputs, got, strict=True):
            wrong = differs(case, wanted, value)
            if wrong:
                return "fail", wrong
    return "pass", ""


def disk_cases(kind: str) -> list:
    from pathlib import Path

    cases = load_model_tests(kind=kind)
    for case in cases:
        sets = []
        for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
            read = lambda stem, folder=folder: [  # noqa: E731
                onnx.TensorProto.FromString((folder / f"{stem}_{i}.pb").read_bytes())
                for i in range(len(list(folder.glob(f"{stem}_*.pb"))))
            ]
            sets.append((read("input"), read("output")))
        case.data_sets = sets
    return cases


def main(pattern: str = "") -> None:
    counts: Counter[str] = Counter()
    cases = [c for kind in ("simple", "pytorch-operator", "pytorch-converted") for c in disk_cases(kind)] + node_cases()
    for case in cases:
        if pattern in case.name:
            verdict, why = run(case)
            counts[verdict] += 1
            if verdict != "pass":
                print(f"{verdict:8} {case.name}: {why}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
