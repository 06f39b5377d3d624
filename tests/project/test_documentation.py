"""The documentation: links of the pages at the top, and what makes `make docs` fail."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT, blocks, run, text

SITE = ROOT / "docs" / "site"
CHECKS = SITE / "extensions" / "site_checks.py"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    pytest.importorskip("sphinx", reason='the site\'s extra is not installed: pip install -e ".[docs]"')
    return runpy.run_path(str(CHECKS))


@pytest.mark.parametrize("page", TOP)
def test_what_a_page_at_the_top_links_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text(page)):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_readme_is_short_and_has_one_picture() -> None:
    assert len(text("README.md").splitlines()) <= 130
    assert len(re.findall(r"!\[", text("README.md"))) == 1


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, training, asking = blocks("README.md")
    (tmp_path / "mynet.py").write_text(network, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run(training + asking)
    assert {p.name for p in tmp_path.glob("**/*.*")} >= {"net.html", "model_pc.py", "model_pc.safetensors"}


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([\w/]+)$", text("docs/index.md"), re.MULTILINE))
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in (ROOT / "docs").rglob("*.md")}
    assert {p for p in pages if not p.startswith("_build")} == listed | {"index"}


def test_the_citation_has_the_version() -> None:
    import pccompile

    assert f"\nversion: {pccompile.__version__}\n" in text("CITATION.cff")


@pytest.mark.parametrize(
    "body, fault",
    [
        ('<a href="gone.html">x</a>', "which is not there"),
        ('<a href="#gone">x</a>', "no such place"),
        ('<a href="other.html#here">x</a>', None),
        ('<a href="https://example.org">x</a>', None),
        ('<script src="https://example.org/x.js"></script>', "needs a network"),
        ('<img src="//example.org/x.png">', "needs a network"),
    ],
)
def test_a_fault_of_a_built_page_is_seen(checks: dict[str, Any], tmp_path: Path, body: str, fault: str | None) -> None:
    (tmp_path / "index.html").write_text(body, encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="here">', encoding="utf-8")
    found = list(checks["faults"](tmp_path))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def test_a_notebook_with_stored_outputs_is_seen(checks: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "clean.ipynb").write_text('{\n "outputs": []\n}', encoding="utf-8")
    assert not list(checks["stored"](tmp_path))
    (tmp_path / "old.ipynb").write_text('{\n  "outputs": [\n    {"text": "4"}\n  ]\n}', encoding="utf-8")
    assert len(list(checks["stored"](tmp_path))) == 1


@pytest.mark.parametrize("host, refused", [("198.51.100.1", True), ("127.0.0.1", False)])
def test_what_a_page_executes_has_no_network(host: str, refused: bool) -> None:
    code = f"import socket; socket.create_connection(('{host}', 9), timeout=2)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SITE / "offline")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode  # nobody listens
    assert ("needs no network" in found.stderr) == refused


BROKEN = {
    "a network": '```{code-cell}\nimport urllib.request\nurllib.request.urlopen("http://198.51.100.1")\n```',
    "a cell that fails": "```{code-cell}\n1 / 0\n```",
    "a dead link": "[there](nowhere.md)",
    "a dead anchor": "[there](#nowhere)",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", [*BROKEN, None])
def test_a_page_that_is_wrong_fails_the_build(checks: dict[str, Any], tmp_path: Path, what: str | None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    head = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n# Page\n\n"
    (source / "index.md").write_text(head + (BROKEN[what] if what else "Fine."), encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "-c", str(ROOT / "docs")]
    done = subprocess.run(
        [*command, str(source), str(tmp_path / "built")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode == 0) == (what is None), done.stderr
