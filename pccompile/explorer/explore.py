"""`explore`: everything that the page shows of a model and one batch, as data, as JSON and as HTML."""

from __future__ import annotations

import base64
import difflib
import functools
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS
from pccompile.backends.torch import Source
from pccompile.diagnostics import CompileError
from pccompile.explorer.runs import as_data, program_of, run
from pccompile.explorer.vertices import code_data, equations_data, graph_data
from pccompile.files.writing import SEAL, check_folder, check_replaceable, write_together
from pccompile.ir import Graph, PCGraph, Program
from pccompile.pipeline import Options, compile_imported
from pccompile.report.gradients import Bench
from pccompile.report.losses import Criterion
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.module import CompiledModule

FORMAT, VERSION = "pccompile exploration", 1
BESIDE = ("exact", "fixed-prediction")
"""What a model's own algorithm is compared with unless a user says otherwise."""
KINDS = {Graph: "graph", PCGraph: "vertices", Program: "program", Source: "code"}
LONGEST = 6000
"""So many lines of a stage are shown."""
VENDOR = ("viz.js.gz", "katex.js.gz", "uplot.js.gz")
SCRIPTS = (
    "state", "elements", "colour", "hierarchy", "layout", "graph", "charts", "code", "panel", "modules", "heatmap",
    "convergence", "compare", "stages", "chip", "search", "views", "keys", "main",
)  # fmt: skip
"""The page's own scripts, in this order one after the other in one function."""


@dataclass(frozen=True)
class Exploration:
    """What `explore` found. data: plain dictionaries, lists, numbers and strings; docs/explorer.md says which."""

    data: Mapping[str, Any]

    def json(self, indent: int | None = None) -> str:
        """The data as JSON."""
        return json.dumps(self.data, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))

    def html(self) -> str:
        """The page: one file that needs nothing else and makes no request."""
        return html(self.json())

    def _repr_html_(self) -> str:
        """The page within a notebook's; it can reach nothing there."""
        style = "width:100%;height:720px;border:1px solid #8884"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(self.html())}"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page to `path`, or the data where it ends in `.json`.

        Raises CompileError rather than overwrite a file that pccompile did not write.
        """
        path = Path(path)
        check_page(path)
        text = self.json(1) if path.suffix == ".json" else self.html()
        return write_together(path.parent, {path.name: lambda p: p.write_text(f"{text}\n", encoding="utf-8")})[0]


def check_page(path: str | Path) -> None:
    """Raise CompileError where writing would fail or destroy what pccompile did not write, or somebody edited."""
    check_folder(Path(path).parent)
    check_replaceable([Path(path)])


def explore(
    pc: CompiledModule,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Any = None,
    loss: Criterion | None = None,
    algorithms: Mapping[str, Mapping[str, Any]] | Sequence[str] | None = None,
    path: str | Path | None = None,
    title: str = "",
    seed: int = 0,
) -> Exploration:
    """A model, and what inference does with one batch, beside other algorithms on the same batch.

    target: what the loss compares outputs with; drawn where none is given. loss: as for `infer`.
    algorithms: those to show besides the model's own, with their settings; by default exact and fixed prediction.
    path: where to write the page, or with `.json` its data. The model stays as it is. Raises CompileError.
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    bench = Bench(pc, args, kwargs or {}, loss, target, seed)
    asked = None if bench.own and pc.criterion is None else bench.loss
    base = pc.prepare(args, kwargs, record=True, loss=asked, target=bench.target if asked else None)
    chosen = {name: {} for name in algorithms} if isinstance(algorithms, Sequence) else dict(algorithms or {})
    if algorithms is None:
        chosen = {name: {} for name in BESIDE if name != pc.options.algorithm}
    if unknown := sorted(set(chosen) - set(ALGORITHMS)):
        raise CompileError(f"unknown algorithm {unknown[0]}", hint=f"one of {', '.join(ALGORITHMS)}")
    runtimes: dict[str, Runtime] = {pc.options.algorithm: base}
    for name, settings in chosen.items():
        key = name if name not in runtimes else f"{name} 2"
        runtimes[key] = program_of(pc, base, name, settings)
    found = Exploration(_data(bench, runtimes, title or type(bench.model).__name__))
    if path is not None:
        found.save(path)
    return found


def _data(bench: Bench, runtimes: Mapping[str, Runtime], title: str) -> dict[str, Any]:
    true = bench.autograd()
    graphs: list[Any] = []
    runs: list[dict[str, Any]] = []
    for key, runtime in runtimes.items():
        assert runtime.compiled is not None
        vertices = graph_data(runtime.compiled.pc, bench.model)
        if vertices not in graphs:
            graphs.append(vertices)
        made = as_data(run(bench, runtime), true)
        runs.append(
            {
                "name": key,
                "algorithm": runtime.options.algorithm,
                "graph": graphs.index(vertices),
                **made,
                "equations": equations_data(runtime.compiled),
                "code": code_data(runtime.compiled),
            }
        )
    first = next(iter(runtimes.values()))
    return {
        "format": FORMAT,
        "version": VERSION,
        "generator": SEAL,
        "kind": "model",
        "title": title,
        "granularity": first.options.vertices,
        "parameters": {k: list(p.shape) for k, p in bench.model.named_parameters()},
        "made_with": {"torch": torch.__version__},
        "graphs": graphs,
        "runs": runs,
        "stages": stages(first, bench.pc.options),
        "chip": None,
    }


class Stages:
    """The results of stages as text, as the pipeline reports them."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, list[str], int]] = []

    def __call__(self, name: str, result: object, seconds: float) -> None:
        """Note a stage's result."""
        kind = next((k for t, k in KINDS.items() if isinstance(result, t)), None)
        if kind is not None:
            lines = (result.text if isinstance(result, Source) else str(result)).splitlines()
            self.found.append((name, kind, lines[:LONGEST], max(0, len(lines) - LONGEST)))


def stages(runtime: Runtime, options: Options) -> list[dict[str, Any]]:
    """Every stage of a model's compilation: its name, what it makes, the lines, and what differs from the one before.

    The lines are of one kind at a time; `changes` pairs "=", "-" and "+" with a number of lines that are kept, left out
    and put in, and is empty for the first of a kind.
    """
    assert runtime.compiled is not None
    noted = Stages()
    compile_imported(runtime.compiled.imported, options, runtime.compiled.loss, hook=noted)
    result, before = [], dict[str, list[str]]()
    for name, kind, lines, more in noted.found:
        changes = list(changed(before[kind], lines)) if kind in before else []
        result.append({"name": name, "kind": kind, "lines": lines, "more": more, "changes": changes})
        before[kind] = lines
    return result


def changed(old: list[str], new: list[str]) -> Iterator[list[Any]]:
    """How `old` becomes `new`, run by run."""
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            yield ["=", b - a]
            continue
        if b > a:
            yield ["-", b - a]
        if d > c:
            yield ["+", d - c]


@functools.cache
def _part(name: str) -> bytes:
    return files("pccompile.explorer").joinpath(name).read_bytes()


@functools.cache
def vendored() -> tuple[bytes, ...]:
    """The scripts of other people, unpacked."""
    return tuple(gzip.decompress(_part(f"vendor/{name}")) for name in VENDOR)


@functools.cache
def script() -> str:
    """The page's own script."""
    parts = (_part(f"page/{name}.js").decode() for name in SCRIPTS)
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


@functools.cache
def style() -> str:
    """The page's style, with KaTeX's fonts."""
    return gzip.decompress(_part("vendor/vendor.css.gz")).decode() + _part("page/style.css").decode()


def _hash(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def packed(content: bytes) -> str:
    """Content for a page: compressed, in base64."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def html(data: str) -> str:
    """The page that shows `data`, JSON of an exploration."""
    own = script()
    parts = {
        "hashes": " ".join(_hash(s) for s in (*vendored(), own.encode())),
        "stylehash": _hash(style().encode()),
        "style": style(),
        "vendor": "\n".join(f'<script type="text/plain" class="vendor">{_packed_vendor(i)}</script>' for i in range(3)),
        "data": packed(data.encode()),
        "script": own,
        "seal": SEAL,
    }
    text = _part("page/template.html").decode()
    head, *rest = text.split("{{")
    return head + "".join(parts[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


@functools.cache
def _packed_vendor(i: int) -> str:
    return packed(vendored()[i])
