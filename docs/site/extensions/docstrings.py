"""Docstrings as reStructuredText: they are plain text with `name: meaning` for arguments, which becomes a list."""

from __future__ import annotations

import re
from typing import Any

ARGUMENT = re.compile(r"^((?:\w+, )*\w+): (?=\S)")
CODE = re.compile(r"(`[^`]*`)")


def escaped(line: str) -> str:
    """A line whose `*`, `|` and trailing `_` stand for themselves outside of backticks."""
    parts = CODE.split(line)
    return "".join(p if CODE.fullmatch(p) else re.sub(r"([*|\\]|_\b)", r"\\\1", p) for p in parts)


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring, arguments as a field list."""
    made: list[str] = []
    listed = False
    for i, line in enumerate(lines):
        argument = ARGUMENT.match(line) if i else None
        if argument:
            made += [] if listed else [""]
            made += [f":{argument[1]}: {escaped(line[argument.end() :])}"]
            listed = True
        elif listed and line.startswith(" "):
            made.append(f"    {escaped(line.strip())}")
        elif line.startswith("    "):  # a table or an example
            made += [] if made and made[-1].startswith("    ") else ["", "::", ""]
            made.append(line)
        else:
            made += [""] if listed or (made and made[-1].startswith("    ")) else []
            made.append(escaped(line))
            listed = False
    return made


def process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, as autodoc has it."""
    lines[:] = restructured(lines)


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
