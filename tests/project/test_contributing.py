"""CONTRIBUTING.md: its diffs fit the tree, and what they add does what the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import ROOT, blocks, text

from project.contributions import CHECKS

PAGE = "CONTRIBUTING.md"
COPIED = ("pccompile", "passes", "backends", "docs/netlist.md", "tests/netlist", "tests/project", "pyproject.toml")
"""What the diffs change, and what is needed to use it."""


def apply(diff: str, tree: Path) -> None:
    """Change the files of `tree` as `diff` says. Raises ValueError where a part fits nowhere or twice."""
    for path, body in re.findall(r"^--- .*\n\+\+\+ b/(.*)\n((?:[@ +-].*\n|\n)*?)(?=--- |\Z)", diff, re.MULTILINE):
        file = tree / path
        for hunk in body.split("@@\n")[1:]:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] or line for line in lines if line[0] not in sign) for sign in "+-")
            before = file.read_text(encoding="utf-8") if file.exists() else ""
            if bool(old) != file.exists() or (old and before.count(old) != 1):
                raise ValueError(f"{path} has not one place for\n{hunk}")
            file.write_text(before.replace(old, new) if old else new, encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with all diffs of the page."""
    copy = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    for diff in blocks(PAGE, "diff"):
        apply(diff, copy)
    return copy


def test_what_it_adds_works(tree: Path) -> None:
    """One process for all of it: most of its time goes into imports."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree), str(tree / "tests")))}
    command = [sys.executable, str(tree / "tests" / "project" / "contributions.py")]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    problems = json.loads(done.stdout.splitlines()[-1])
    assert list(problems) == list(CHECKS)
    assert "".join(problems.values()) == ""


def test_each_kind_has_its_diff() -> None:
    parts = text(PAGE).split("\n## ")[1:]
    assert {p.splitlines()[0] for p in parts if "```diff" in p} == set(CHECKS)


def test_what_it_adds_keeps_the_style(tree: Path) -> None:
    for command in (["check"], ["format", "--check", "--diff"]):
        options = ["--config", str(tree / "pyproject.toml"), "passes", "backends", "pccompile"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options], cwd=tree, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_diff_that_fits_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 2", "x = 1"):
        with pytest.raises(ValueError, match=r"a\.py has not one place"):
            apply(f"--- a/a.py\n+++ b/a.py\n@@\n-{old}\n+x = 3\n", tmp_path)


def test_every_folder_of_tests_is_listed() -> None:
    folders = {f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/__init__.py")} | {"tests/ops"}
    listed = {
        name
        for row in re.findall(r"^\| (`tests/.*?) \|", text(PAGE), re.MULTILINE)
        for name in re.findall(r"`(.*?)`", row)
    }
    assert listed == folders
