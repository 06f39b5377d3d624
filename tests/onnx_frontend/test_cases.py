"""The ONNX project's own cases for every operator that has a rule."""

from __future__ import annotations

import pytest

from onnx_frontend.cases import disk_cases, node_cases, run

DRAWN = ("test_bernoulli", "test_training_dropout", "test_multinomial", "test_random")
"""Cases whose expected output comes from another random generator."""

BEYOND_TORCH = ("uint16", "uint32", "uint64", "bitwise_not_3d", "col2im_5d", "scan_sum")
"""Cases that torch has no arithmetic for, and that are refused when they run."""

COARSE = ("bf16", "fp16", "FLOAT16", "bfloat16")
"""Cases whose tolerance is finer than their element type."""


def failures(cases) -> tuple[list[str], int]:
    wrong, passed = [], 0
    for case in cases:
        if case.name.startswith(DRAWN) or any(word in case.name for word in (*BEYOND_TORCH, *COARSE)):
            continue
        verdict, why = run(case)
        passed += verdict == "pass"
        if verdict == "fail":
            wrong.append(f"{case.name}: {why}")
    return wrong, passed


def test_a_sample_of_the_operator_cases():
    wrong, passed = failures(node_cases()[::8])
    assert not wrong
    assert passed > 150


def test_the_cases_stored_on_disk():
    wrong, passed = failures(
        [c for kind in ("simple", "pytorch-operator", "pytorch-converted") for c in disk_cases(kind)]
    )
    assert not wrong
    assert passed > 100


@pytest.mark.slow
def test_all_operator_cases():
    wrong, passed = failures(node_cases())
    assert not wrong
    assert passed > 1350
