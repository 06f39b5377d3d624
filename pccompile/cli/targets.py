"""What a command line calls a model: read, and looked for, before anything heavy is loaded."""

from __future__ import annotations

import ast
import difflib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pccompile.diagnostics import CompileError, UsageError, listing, printable
from pccompile.files.reading import open_file, read_file, untrusted

COMMANDS = ("explain", "diff", "watch")
"""What else than a model may stand first."""
SUFFIX = ".pcnet.json"
LARGEST_SOURCE = 2**20


@dataclass(frozen=True)
class Code:
    """Python that makes a model: an attribute of a module, or of a file."""

    module: str
    attribute: str
    file: Path | None = None


def code_of(target: str) -> Code | None:
    """What `package.module:factory` or `folder/file.py:factory` names; None where a target is neither."""
    before, _, attribute = target.rpartition(":")
    if not all(part.isidentifier() for part in attribute.split(".")):
        return None
    if before.endswith(".py"):
        return Code(Path(before).stem, attribute, Path(before))
    return Code(before, attribute) if all(part.isidentifier() for part in before.split(".")) else None


def kind_of(target: str) -> str:
    """What a target is: "circuit", "onnx", "pt2" or "module". Raises UsageError."""
    suffix = Path(target).suffix.lower()
    if target.endswith(SUFFIX):
        return "circuit"
    if suffix in (".onnx", ".pt2"):
        return suffix[1:]
    if code_of(target):
        return "module"
    shown = printable(target, 80)
    if suffix == ".py":
        inside = listing(_definitions(Path(target)), 5)
        which = f", one of {inside}" if inside else ""
        raise UsageError(f"{shown} may have many models: name one, {shown}:NAME{which}")
    near = difflib.get_close_matches(target, COMMANDS, 1)
    meant = f"; did you mean the command {near[0]}?" if near else ""
    forms = "a file .onnx, .pt2 or .pcnet.json, package.module:factory or file.py:factory"
    raise UsageError(f"{shown} is no model: expected {forms}{meant}")


def _definitions(path: Path) -> list[str]:
    """The classes and functions of a file of Python, which is read and not run."""
    try:
        tree = ast.parse(read_file(path, LARGEST_SOURCE))
    except (CompileError, SyntaxError, ValueError, RecursionError):
        return []
    return [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")]


def default_name(target: str) -> str:
    """The files' name for a model that has been given none."""
    code = code_of(target)
    if code:
        return code.attribute.rpartition(".")[2]
    return Path(target).name.removesuffix(SUFFIX) if target.endswith(SUFFIX) else Path(target).stem


def look_for(target: str, trust_code: bool) -> None:
    """Raise CompileError for a model that is not there or may not be opened, and UsageError for what is no model."""
    kind, code = kind_of(target), code_of(target)
    if code is None:
        open_file(Path(target)).close()
        if kind == "pt2" and not trust_code:
            raise untrusted(Path(target))
    elif code.file is not None:
        open_file(code.file).close()
        if not (trust_code or code.file.resolve().is_relative_to(Path.cwd().resolve())):
            raise CompileError(
                f"{printable(str(code.file))} is not run: it lies outside the folder where you are",
                hint="if you trust who wrote it, --trust-code",
            )
    else:
        search_here()
        top = code.module.partition(".")[0]
        with suppress(ValueError):  # of a module that has been loaded without a specification
            if find_spec(top) is None:
                raise CompileError(f"there is no module {top}", hint="it was looked for here and on Python's path")


def search_here() -> None:
    """Let Python find modules in the folder where the user is."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
