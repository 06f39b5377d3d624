"""What is built of the repository: the wheel works outside of it, the source archive is whole."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers.pages import ROOT, blocks, text

LEFT_OUT = (".*", "build", "dist", "out", "*.egg-info", "__pycache__", "_build", "*.pyc")
FOLDERS = ("backends", "benchmarks", "docs", "examples", "passes", "pccompile", "tests", "tools")
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"


def files(folder: Path) -> set[str]:
    """The files of a folder that belong to the project, by their paths in it; links are not followed."""
    found = set()
    for at, inner, names in os.walk(folder):
        inner[:] = [n for n in inner if not any(Path(n).match(pattern) for pattern in LEFT_OUT)]
        found |= {str(Path(at, n).relative_to(folder)) for n in names if not n.endswith((".pyc", ".ipynb"))}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with `dist/` in it, as `make dist` makes it."""
    copy = tmp_path_factory.mktemp("built") / "source"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in (".ci", ".github", ".gitignore"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", str(copy)]
    done = subprocess.run(command, cwd=copy.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "absent from the `packages`" not in done.stdout + done.stderr
    return copy


def test_the_source_archive_has_all_files(built: Path) -> None:
    (path,) = (built / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = {m.name.partition("/")[2]: m for m in archive.getmembers()}
    assert {k: m.linkname for k, m in members.items() if m.issym()} == {
        "pccompile/passes": "../passes",
        "pccompile/backends": "../backends",
    }
    for folder in FOLDERS:
        missing = {f"{folder}/{name}" for name in files(ROOT / folder)} - set(members)
        assert not missing, sorted(missing)[:5]
    top = ("Makefile", "constraints.txt", "CITATION.cff", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "LICENSE")
    assert {*top, ".ci/run", ".github/workflows/release.yml", "setup.py", "MANIFEST.in"} <= set(members)


def test_the_wheel_has_all_modules_and_data(built: Path) -> None:
    (path,) = (built / "dist").glob("*.whl")
    found = {n for n in zipfile.ZipFile(path).namelist() if ".dist-info/" not in n}
    expected = {f"pccompile/{n}" for n in files(ROOT / "pccompile")}
    for room in ("passes", "backends"):
        expected |= {f"pccompile/{room}/{n}" for n in files(ROOT / room)}
    assert found == expected


@pytest.fixture(scope="module")
def outside(built: Path) -> tuple[Path, dict[str, str]]:
    """A folder that is not the repository, with a model in it, and an environment that has all but pccompile."""
    folder = built.parent / "elsewhere"
    folder.mkdir()
    (folder / "mynet.py").write_text(blocks("docs/own_model.md")[0], encoding="utf-8")
    shutil.copytree(built / "dist", folder / "dist")
    fresh, packages = built.parent / "fresh", built.parent / "packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
    packages.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "pccompile" not in package.name and not package.name.endswith(".pth"):
            (packages / package.name).symlink_to(package)
    (site,) = fresh.glob("lib/*/site-packages")
    (site / "all.pth").write_text(f"{packages}\n")
    pip = fresh / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{fresh}/bin/python" -m pip "$@"\n')
    pip.chmod(0o755)
    path = os.pathsep.join((str(fresh / "bin"), os.environ["PATH"]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP", "VIRTUAL_ENV"))}
    return folder, {**environment, "PATH": path, "BROWSER": "echo opened %s", "PIP_NO_INDEX": "1"}


@pytest.mark.slow
def test_three_commands_lead_to_a_page_of_ones_own_model(outside: tuple[Path, dict[str, str]]) -> None:
    folder, environment = outside
    commands = blocks("docs/installing.md", "console")[0].splitlines()
    assert len(commands) == 3
    assert all(command in text("README.md") for command in commands)
    said = ""
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    assert re.search(r"^opened \S*net\.html$", said, re.MULTILINE)
    (packed,) = re.findall(r'id="data">([^<]*)</script>', (folder / "net.html").read_text(encoding="utf-8"))
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert data["title"] == "Net"
    assert {"hidden", "tanh", "readout"} == {vertex["name"] for vertex in data["graphs"][0]}
    where = "import pccompile.passes.dce as a, pccompile.backends.netlist.chip as b; print(a.__file__, b.__file__)"
    found = subprocess.run(
        ["python", "-c", where], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all("/fresh/lib/" in path for path in found)
    assert not any(Path(path).is_symlink() for path in found)


ABSENT = ("onnx", "ml_dtypes", "onnxruntime", "rich", "matplotlib", "scipy", "sklearn", "nengo", "nir", "shtab")
MINIMAL = f"""
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {ABSENT} else found(name, *rest)

import pccompile
assert not {{"torch", "onnx", "sympy", "numpy"}} & set(sys.modules), "importing pccompile is light"
import torch
from torch import nn

x, y = torch.randn(2, 3), torch.randn(2, 4)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
pc = pccompile.compile(model, (x,))
assert pccompile.verify(pc, (x,), target=y).passed
pc.loss(x, target=y).backward()
str(pc.summary()), str(pc.explain()), str(pc.cost()), pc.latex()
pc.explore((x,), target=y, path="net.html")
pc.save("out")
pccompile.compile(model, (x,), backend="netlist").simulate({{"input": x}}, {{"n1": y}}, ticks=4)
try:
    pccompile.compile("model.onnx")
except pccompile.CompileError as e:
    assert "is not installed: ONNX files need it" in str(e), e
else:
    raise AssertionError("an ONNX file was read")
"""


@pytest.mark.slow
def test_what_is_optional_is_not_needed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MINIMAL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_names_what_is_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = text("docs/installing.md")
    for requirement in project["dependencies"]:
        assert re.split(r"[>=<]", requirement)[0] in page
    for extra in {*project["optional-dependencies"]} - {"dev", "docs", "integrations", "models"}:
        assert f"`{extra}`" in page
    assert f"pccompile-{project['version']}-py3-none-any.whl" in page


def test_the_release_workflow_tests_each_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    (tested,) = re.findall(r"python: (\[.*\])", WORKFLOW.read_text(encoding="utf-8"))
    assert {*json.loads(tested)} == promised
    assert project["requires-python"] == f">={min(promised, key=lambda v: int(v.partition('.')[2]))}"
