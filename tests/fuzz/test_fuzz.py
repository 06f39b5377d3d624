"""Files that are wrong somewhere end in an exit code that is meant, quickly, in little memory, and leave nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fuzz import circuit_files, onnx_files
from fuzz.driver import case, run

CASES, PARTS = 300, 3


@pytest.mark.parametrize("kind", [onnx_files, circuit_files], ids=["onnx", "circuits"])
@pytest.mark.parametrize("part", range(PARTS))
def test_files_that_are_wrong(kind, part: int) -> None:
    size = CASES // PARTS
    outcomes = list(run(kind.write, range(part * size, (part + 1) * size)))
    assert len(outcomes) == size
    assert not [o for o in outcomes if o.wrong]
    assert {0, 1} <= {o.code for o in outcomes}, "some are right"


@pytest.mark.parametrize("kind", [onnx_files, circuit_files], ids=["onnx", "circuits"])
def test_a_seed_gives_the_same_files(kind, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        for seed in range(5):
            kind.write(seed, folder)
    first, second = ([p.read_bytes() for p in sorted(folder.iterdir())] for folder in folders)
    assert first == second


def crash(seed: int, folder: Path) -> list[list[str]]:
    match seed:
        case 1:
            raise ValueError("written wrongly")
        case 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 3:
            (folder / ".pccompile_left").mkdir()
        case 4:
            (folder / "m.onnx").write_bytes(b"nothing")
    return [["m.onnx"]]


def test_what_goes_wrong_is_noticed() -> None:
    outcomes = {o.seed: o for o in run(crash, range(5))}
    assert sorted(outcomes) == list(range(5))
    assert not outcomes[0].wrong
    assert outcomes[0].code == 1
    assert outcomes[1].wrong
    assert "SIGSEGV" in outcomes[2].wrong
    assert "leaves" in outcomes[3].wrong
    assert not outcomes[4].wrong
    assert case(crash, 4).code == 1
