"""Small files that ask for too much come to one line and exit code 1, in 20 seconds and 2 GiB."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from cli.bombs import BOMBS, WRONG, altered, looped, strings
from cli.limited import GIBIBYTES, SECONDS, Ending, limited


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "data").write_bytes(bytes(48))
    (tmp_path / "device").symlink_to("/dev/zero")
    return tmp_path


def refused(ending: Ending) -> str:
    """What a refusal says, which is short, and took little."""
    assert ending.code == 1, ending
    assert ending.seconds < SECONDS
    assert ending.gibibytes < GIBIBYTES
    assert "Traceback" not in ending.said
    assert len(ending.said) < 2000
    assert [line for line in ending.said.splitlines() if "error: " in line], ending.said
    return ending.said


@pytest.mark.quick(48)
@pytest.mark.parametrize("name", BOMBS | WRONG)
def test_a_bomb(name: str, place: Path) -> None:
    (place / "b.onnx").write_bytes((BOMBS | WRONG)[name]().SerializeToString())
    refused(limited("b.onnx", "-o", "out"))
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["concat", "functions twice", "loop"])
def test_a_bomb_is_examined(name: str, place: Path) -> None:
    (place / "b.onnx").write_bytes(BOMBS[name]().SerializeToString())
    assert "--budget" in refused(limited("b.onnx", "--doctor"))
    assert "--budget" in refused(limited("b.onnx", "--backend", "netlist"))


def test_patterns_take_linear_time(place: Path) -> None:
    (place / "b.onnx").write_bytes(strings("", pattern="(a+)+b").SerializeToString())
    assert "no parameter that learns" in refused(limited("b.onnx", "--doctor"))


def test_a_budget_is_raised_by_name_and_by_factor(place: Path) -> None:
    (place / "l.onnx").write_bytes(altered(lambda m: None).SerializeToString())
    assert limited("l.onnx", "--quiet").code == 0
    assert "asks for" in refused(limited("l.onnx", "--budget", "memory=40"))
    assert "asks for" in refused(limited("l.onnx", "--budget", "1e-9"))
    assert limited("l.onnx", "--budget", "1e-9", "--budget", "memory=1000000", "--budget", "operations=1000000",
                   "--budget", "nodes=9", "--budget", "depth=9").code == 0  # fmt: skip
    for wrong in ("memory", "memory=x", "speed=3", "0", "-1", "nan", "memory=-5", "memory=1e99"):
        assert limited("l.onnx", "--budget", wrong).code == 2, wrong


def test_a_loop_runs_as_far_as_the_budget_goes(place: Path) -> None:
    (place / "l.onnx").write_bytes(looped(60).SerializeToString())
    assert "steps" in refused(limited("l.onnx", "--budget", "steps=100"))
    assert "no parameter that learns" in refused(limited("l.onnx", "--budget", "steps=1000"))


def test_graphs_inside_graphs(place: Path) -> None:
    inner = onnx.helper.make_graph([], "g", [], [])
    for _ in range(60):
        node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        inner = onnx.helper.make_graph([node], "g", [], [])
        if inner.ByteSize() > 10**6:
            break
    (place / "b.onnx").write_bytes(altered(lambda m: m.graph.node.extend(inner.node)).SerializeToString())
    refused(limited("b.onnx", "-o", "out"))


BYTES = (b"", b"\xff" * 100, b"\x08\x0a\x3a\xff\xff\xff\xff\x07", b":" * 10**6, b"\x0a" * 10**6, b"\x3a\x02" * 10**5)


@pytest.mark.parametrize("data", BYTES)
def test_bytes_that_are_no_model(data: bytes, place: Path) -> None:
    (place / "b.onnx").write_bytes(data)
    refused(limited("b.onnx", "--doctor"))


def test_a_file_of_many_gigabytes_is_not_read(place: Path) -> None:
    with (place / "b.onnx").open("wb") as file:
        file.truncate(10**12)
    assert "at most" in refused(limited("b.onnx"))
