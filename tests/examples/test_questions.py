"""The page of questions: each command is there and each script is named; two outputs are what the page shows."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "questions"
WRITER = runpy.run_path(str(FOLDER / "write_page.py"))
PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")


def shown() -> dict[str, str]:
    """What the page has below each command."""
    return {m[2]: m[3] for m in WRITER["BLOCK"].finditer(PAGE)}


def test_the_page_names_every_script_and_only_those() -> None:
    scripts = {p.stem for p in FOLDER.glob("*.py")} - {"write_page"}
    assert set(shown()) == scripts
    assert all(shown().values())
    for name in scripts:
        assert callable(runpy.run_path(str(FOLDER / f"{name}.py"))["main"])


def test_every_question_has_one_command() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) == 12
    for section in sections:
        assert section.count("$ python examples/questions/") == 1, section.splitlines()[0]


@pytest.mark.parametrize("name", ["laplacian", "one_step"])
def test_what_is_shown_is_what_is_printed(name: str, capsys) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out == shown()[name]


def test_outputs_are_put_below_their_commands() -> None:
    page = "a\n```\n$ python examples/questions/one.py\nold\n```\nb\n```\n$ python examples/questions/two.py\n```\n"
    filled = WRITER["filled"](page, lambda name: f"new {name}\n", ["one"])
    assert filled == page.replace("old", "new one")
    assert "$ python examples/questions/two.py\nnew two\n```" in WRITER["filled"](
        page, lambda name: f"new {name}\n", []
    )
