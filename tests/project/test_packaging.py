"""pyproject.toml lists every package folder: setuptools leaves out what it does not list, silently."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from pccompile.algorithms import ALGORITHMS
from pccompile.algorithms.names import AlgorithmName, AlgorithmSettings

ROOT = Path(__file__).parents[2]
AT = {"pccompile": "pccompile", "passes": "pccompile.passes", "backends": "pccompile.backends"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    listed = project()["tool"]["setuptools"]["packages"]
    found = [
        ".".join([dotted, *init.parent.relative_to(ROOT / folder).parts])
        for folder, dotted in AT.items()
        for init in (ROOT / folder).rglob("__init__.py")  # rglob does not follow the links in pccompile/
    ]
    assert sorted(listed) == sorted(found)


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in AT:
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_only_what_all_rooms_share_and_what_users_import_is_at_the_top() -> None:
    found = {path.stem for path in (ROOT / "pccompile").glob("*.py")}
    assert found == {"__init__", "diagnostics", "limits", "onnx_backend", "pipeline"}


def test_the_links_lead_to_the_folders() -> None:
    for name in ("passes", "backends"):
        link = ROOT / "pccompile" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert link.resolve() == ROOT / name


def test_modules_are_imported_under_one_name() -> None:
    import pccompile.backends.torch
    import pccompile.passes.dce

    assert not {"passes", "backends", "backends.torch"} & set(sys.modules)
    assert Path(pccompile.passes.dce.__file__).resolve() == ROOT / "passes" / "dce.py"


def test_the_command_is_there() -> None:
    (target,) = project()["project"]["scripts"].values()
    module, function = target.split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_version_is_the_packages() -> None:
    import pccompile

    assert project()["project"]["version"] == pccompile.__version__


def test_a_type_checker_knows_what_the_registry_has() -> None:
    assert {*get_args(AlgorithmName)} == {*ALGORITHMS}
    typed = get_type_hints(AlgorithmSettings)
    for algorithm in ALGORITHMS.values():
        for name, kind in get_type_hints(algorithm.settings).items():
            assert alternatives(kind) <= alternatives(typed[name]), (algorithm.name, name)
    assert {*typed} == {name for a in ALGORITHMS.values() for name in get_type_hints(a.settings)}


def alternatives(kind: Any) -> set[Any]:
    """The types that a union offers, each word of a Literal by itself."""
    if get_origin(kind) is Literal:
        return {*get_args(kind)}
    if get_origin(kind) in (Union, UnionType):
        return {part for inner in get_args(kind) for part in alternatives(inner)}
    return {kind}


TYPES = """
from typing import Any

from torch import nn

import pccompile

model = nn.Linear(2, 2)
pccompile.compile(model, (), algorithm="stricct")  # error
pccompile.compile(model, (), algorithm="strict", stpes=3)  # error
pccompile.compile(model, (), algorithm="strict", steps="many")  # error
pccompile.compile(model, (), granularity="layers")  # error
pccompile.compile(model, (), feedback="randon")  # error
pccompile.compile(model, (), backend="netlist", tiks=3)  # error
pccompile.compile(model, (), algorithm="strict", steps="auto", rate=0.1)
pccompile.compile(model, (), backend="netlist", ticks=3)
names: tuple[pccompile.AlgorithmName, ...] = ("exact", "strict")
for known in names:
    pccompile.compile(model, (), algorithm=known)
settings: dict[str, Any] = {"decay": 0.1}
own: Any = "sparse"
pccompile.compile(model, (), algorithm=own, **settings)
"""


@pytest.mark.slow
def test_a_type_checker_sees_wrong_names(tmp_path: Path) -> None:
    path = tmp_path / "uses.py"
    path.write_text(TYPES)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {int(line) for line in re.findall(r"uses\.py:(\d+): error", done.stdout)}
    assert found == {i for i, line in enumerate(TYPES.splitlines(), 1) if line.endswith("# error")}, done.stdout
