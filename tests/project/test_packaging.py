"""pyproject.toml lists every package folder: setuptools leaves out what it does not list, silently."""

import sys
import tomllib
from pathlib import Path

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
