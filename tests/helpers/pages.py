"""The pages of docs/ as data: their blocks of code, which tests run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def text(page: str) -> str:
    """A page, by its path in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "python") -> list[str]:
    """Its fenced blocks in `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def run(block: str) -> dict[str, Any]:
    """What a block of Python defines."""
    # Classes of a scope without a name are of `builtins`; reading hints would write a cycle into it that stops Dynamo.
    scope: dict[str, Any] = {"__name__": "document"}
    exec(compile(block, "document", "exec", dont_inherit=True), scope)
    return scope
