"""docs/architecture.md: its stages are called in its order, and have the texts that it shows."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from helpers.pages import ROOT, blocks, text
from torch import nn

import pccompile

PAGE = "docs/architecture.md"
CALL = re.compile(r"^- `([\w/]+\.py)` `([\w.]+)`", re.MULTILINE)
Place = tuple[str, str]
"""A file, by its path in the repository, and the qualified name of a function in it."""


def section(heading: str) -> list[Place]:
    """The functions that a section of the page names, in its order."""
    (found,) = [part for part in text(PAGE).split("\n## ") if part.startswith(heading)]
    return CALL.findall(found)


def dotted(path: str) -> str:
    """How a file or folder is imported."""
    module = path.removesuffix(".py").replace("/", ".")
    return module if module.startswith("pccompile") else f"pccompile.{module}"


ROAD, CIRCUIT = section("One model"), section("The other road")


@pytest.fixture
def net(tmp_path: Path) -> ModuleType:
    """The page's model as a module of its own file."""
    path = tmp_path / "net.py"
    path.write_text(blocks(PAGE)[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("net", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls(run: Callable[[], Any]) -> Iterator[Place]:
    """The functions of the package that `run` calls, in order, with repeats."""
    found: list[Place] = []
    inside = {str(ROOT / name) for name in ("pccompile", "passes", "backends")}

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(tuple(inside)):
            found.append((code.co_filename, code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return ((str(Path(file).resolve().relative_to(ROOT)), name) for file, name in found)


def missing(wanted: list[Place], called: Iterator[Place]) -> list[Place]:
    """What of `wanted` is not called, or not behind what stands before it."""
    return [place for place in wanted if place not in called]  # `in` takes from the iterator up to what it looks for


@pytest.mark.parametrize("place", dict.fromkeys(ROAD + CIRCUIT), ids=lambda p: f"{Path(p[0]).stem}.{p[1]}")
def test_what_is_named_is_there(place: Place) -> None:
    file, name = place
    found: Any = importlib.import_module(dotted(file))
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    assert Path(inspect.unwrap(found).__code__.co_filename).resolve() == ROOT / file


def test_a_gradient_goes_the_way_of_the_page(net: ModuleType) -> None:
    x, y = torch.randn(16, 4), torch.randint(2, (16,))
    model, plain = net.Net(), net.Net()
    plain.load_state_dict(model.state_dict())

    def train() -> None:
        pc = pccompile.compile(model, (x,))
        nn.functional.cross_entropy(pc(x), y).backward()

    assert len(ROAD) >= 20
    assert missing(ROAD, calls(train)) == []
    nn.functional.cross_entropy(plain(x), y).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_circuit_goes_the_way_of_the_page(net: ModuleType, tmp_path: Path) -> None:
    assert len(CIRCUIT) >= 6
    example = (torch.randn(1, 4),)
    called = calls(lambda: pccompile.compile(net.Net(), example, backend="netlist").save(tmp_path / "out"))
    assert missing(CIRCUIT, called) == []


def test_another_order_is_seen(net: ModuleType) -> None:
    export, emit = (next(p for p in ROAD if p[1] == name) for name in ("export", "emit"))
    called = calls(lambda: pccompile.compile(net.Net(), (torch.randn(16, 4),)))
    assert missing([emit, export], called) == [export]


def test_its_texts_are_those_of_the_stages(net: ModuleType) -> None:
    pc = pccompile.compile(net.Net(), (torch.randn(16, 4),))
    stages = [pc.compiled.graph, pc.compiled.pc, pc.compiled.program]
    assert [block.rstrip() for block in blocks(PAGE, "text")] == [str(stage) for stage in stages]
    assert blocks(PAGE)[1] in pc.source


def test_its_rooms_are_those_of_the_floors() -> None:
    project = tomllib.loads(text("pyproject.toml"))
    floors = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = re.findall(r"^\| (`.*?) \|", text(PAGE), re.MULTILINE)
    named = [[dotted(room).removeprefix("pccompile.") for room in re.findall(r"`([\w/.]+)`", row)] for row in rows]
    assert named == [[room.strip().removeprefix("pccompile.") for room in floor.split("|")] for floor in floors]
