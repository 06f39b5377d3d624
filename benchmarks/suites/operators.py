"""Every operator and module of torch's own test databases: outputs and gradients against eager autograd."""

from __future__ import annotations

import copy
import io
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import pccompile
from pccompile.analysis.compare import difference
from pccompile.diagnostics import printable
from suites.draws import SharedDraws
from suites.rows import STATUSES, Row
from suites.torch_samples import Case, Sample, cases

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.complex128: 1e-9}
"""Largest relative error of an output or a gradient."""
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4, torch.complex128: 1e-12}
"""A difference of so much of the sample's largest number is none: some gradients are 0 up to rounding."""
MOST = 16
"""Samples of an entry that are run, spread over torch's list, unless more are asked for: max_pool2d alone has 1440."""
FLOORS: Mapping[str, float] = {
    "operator: pass": 531,
    "operator: pass, % of capturable": 99.6,
    "module: pass": 113,
    "complex: pass": 316,
}


@dataclass(frozen=True)
class Verdict:
    """What came of one sample."""

    status: str
    reason: str = ""


def names() -> list[str]:
    """The entries, sorted."""
    return sorted(cases())


def check(name: str, samples: int | None = None) -> list[Row]:
    """One row for float64 and float32, and one more for complex numbers where the operator takes them."""
    case, rows = cases()[name], []
    if torch.float64 in case.dtypes:
        rows.append(_row(case, case.kind, (torch.float64, torch.float32), samples))
    if torch.complex128 in case.dtypes:
        rows.append(_row(case, "complex", (torch.complex128,), samples))
    return [r for r in rows if r is not None]


def _row(case: Case, kind: str, dtypes: Sequence[torch.dtype], samples: int | None) -> Row | None:
    """The row of all samples in the first of `dtypes`, and of the first sample in the others."""
    start = time.process_time()
    verdicts: list[Verdict] = []
    with _quiet():
        for dtype in dtypes:
            torch.manual_seed(0)
            count = (MOST if samples is None else samples) if dtype is dtypes[0] else 1
            found = (judge(s, dtype) for s in _spread(list(case.make(dtype)), count))
            verdicts += [v for v in found if v is not None]
    if not verdicts:
        return None
    seconds = time.process_time() - start
    return _summed(case.name, kind, verdicts, seconds)


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """At most so many of the samples, the first and the last among them and the rest evenly between."""
    if len(samples) <= most:
        return samples
    return [samples[round(i * (len(samples) - 1) / max(most - 1, 1))] for i in range(most)]


def _summed(name: str, kind: str, verdicts: Sequence[Verdict], seconds: float) -> Row:
    """The worst of the samples that torch.export takes decides."""
    count = Counter(v.status for v in verdicts)
    capturable = len(verdicts) - count["not capturable"]
    worst = next((s for s in ("wrong", "fail", "refused") if count[s]), "pass" if capturable else "not capturable")
    reasons = Counter(v.reason for v in verdicts if v.status == worst)
    if worst == "pass":
        reasons = Counter(v.reason for v in verdicts if v.status == "not capturable")
    text = "; ".join(f"{r} ({n} of {len(verdicts)} samples)" for r, n in reasons.most_common(2))
    if worst == "pass" and text:
        text = f"not capturable: {text}"
    return Row(name, kind, worst, count["pass"], capturable, seconds, text)


def judge(sample: Sample, dtype: torch.dtype) -> Verdict | None:
    """How a compiled sample compares with eager autograd; None where eager autograd has no gradient of it."""
    try:
        expected = _run(copy.deepcopy(sample.model), sample)
    except RuntimeError:  # such as those of a result that is sparse and complex
        return None
    if not expected.gradients:
        return None
    try:
        pc = pccompile.compile(copy.deepcopy(sample.model), sample.args, sample.kwargs, capture="export")
    except pccompile.CompileError as e:
        refusal = uncapturable(sample)
        return Verdict("not capturable", refusal) if refusal else Verdict("refused", _line(e))
    except Exception as e:
        return Verdict("fail", f"compiling: {_line(e)}")
    try:
        problem = _compared(_run(pc, sample), expected, dtype)
        if problem:
            problem = _compared(
                _run(pc, sample, SharedDraws()), _run(copy.deepcopy(sample.model), sample, SharedDraws()), dtype
            )
        if problem and dtype == torch.float64 and _autograd_errs(sample, _run(pc, sample), expected):
            return Verdict("pass", "eager autograd is wrong by finite differences")
    except Exception as e:
        return Verdict("fail", f"running: {_line(e)}")
    return Verdict("wrong", problem) if problem else Verdict("pass")


@dataclass(frozen=True)
class _Result:
    outputs: list[Any]
    gradients: dict[str, Tensor | None]


def _run(model: Any, sample: Sample, draws: Any = None) -> _Result:
    """Outputs, and the gradient of each argument and parameter for random cotangents."""
    flat, spec = pytree.tree_flatten((sample.args, sample.kwargs))
    flat = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in flat]
    args, kwargs = pytree.tree_unflatten(flat, spec)
    leaves = {f"argument {i}": a for i, a in enumerate(flat) if isinstance(a, Tensor) and a.requires_grad}
    leaves |= {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    with draws or nullcontext():
        outputs = pytree.tree_leaves(model(*args, **kwargs))
    moved = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    if not moved or not leaves:
        return _Result(outputs, {})
    cotangents = [_normal(o, i) for i, o in enumerate(outputs) if isinstance(o, Tensor) and o.requires_grad]
    found = torch.autograd.grad(moved, list(leaves.values()), cotangents, allow_unused=True)
    return _Result(outputs, dict(zip(leaves, found, strict=True)))


def _autograd_errs(sample: Sample, found: _Result, expected: _Result) -> bool:
    """Whether central differences along a random direction say that eager autograd is wrong and we are right."""
    flat, spec = pytree.tree_flatten((sample.args, sample.kwargs))
    places = [i for i, a in enumerate(flat) if isinstance(a, Tensor) and a.requires_grad]
    steps = {i: _normal(flat[i], 100 + i) for i in places}

    def projected(size: float) -> float:
        moved = [a.detach() + size * steps[i] if i in steps else a for i, a in enumerate(flat)]
        args, kwargs = pytree.tree_unflatten(moved, spec)
        torch.manual_seed(0)
        outputs = pytree.tree_leaves(copy.deepcopy(sample.model)(*args, **kwargs))
        moving = [i for i, o in enumerate(expected.outputs) if isinstance(o, Tensor) and o.requires_grad]
        return sum(float((outputs[i] * _normal(outputs[i], i)).sum()) for i in moving)

    slope = (projected(1e-6) - projected(-1e-6)) / 2e-6
    ours, theirs = (
        sum(float((g * steps[i]).sum()) for i in places if (g := r.gradients.get(f"argument {i}")) is not None)
        for r in (found, expected)
    )
    close = 1e-6 * max(1.0, abs(slope))
    return abs(ours - slope) < close and abs(theirs - slope) > 100 * close


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def _compared(found: _Result, expected: _Result, dtype: torch.dtype) -> str:
    """The first thing that differs, in one line; empty where everything agrees."""
    if len(found.outputs) != len(expected.outputs):
        return f"{len(found.outputs)} outputs for {len(expected.outputs)}"
    pairs = [(f"output {i}", a, b) for i, (a, b) in enumerate(zip(found.outputs, expected.outputs, strict=True))]
    pairs += [(f"gradient of {k}", found.gradients.get(k), g) for k, g in expected.gradients.items()]
    for what, a, b in pairs:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            if a != b:
                return f"{what} is {a}, not {b}"
            continue
        a, b = (torch.zeros_like(o) if t is None else t for t, o in ((a, b), (b, a)))
        if a.dtype != b.dtype:
            return f"{what} is {a.dtype}, not {b.dtype}"
        d = difference(what, a, b)
        if d.relative_error > TOLERANCE[dtype] and d.max_abs > ROUNDING[dtype] * _largest(expected):
            return f"{what} differs by {d.relative_error:.1e}{f' ({d.note})' if d.note else ''}"
    return ""


def _largest(result: _Result) -> float:
    """The largest finite magnitude in a result, at least 1."""
    tensors = [t.detach() for t in (*result.outputs, *result.gradients.values()) if isinstance(t, Tensor)]
    sizes = [float(t.to_dense().abs().nan_to_num(0, 0, 0).max()) for t in tensors if t.numel()]
    return max([1.0, *sizes])


def uncapturable(sample: Sample) -> str:
    """Why torch.export itself refuses a sample, or gives no functional program of it; empty where it does."""
    try:
        program = torch.export.export(copy.deepcopy(sample.model), sample.args, sample.kwargs, strict=False)
    except Exception as e:
        return _line(e)
    values = {n.name: n.meta.get("val") for n in program.graph.nodes}
    sparse = [k for k, v in values.items() if isinstance(v, Tensor) and v.layout is not torch.strided]
    return f"{sparse[0]} is sparse: torch.export has no functional form of it" if sparse else ""


def _line(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip() or type(error).__name__
    line = next(ln.strip() for ln in text.splitlines() if ln.strip())
    line = line.removeprefix("error: ")
    return printable(line if isinstance(error, pccompile.CompileError) else f"{type(error).__name__}: {line}", 200)


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Entries that pass, by kind, and their share of what torch.export can capture; and those that are wrong."""
    found: dict[str, float] = {"wrong": float(sum(r.status == "wrong" for r in rows))}
    for kind in sorted({r.kind for r in rows}):
        statuses = [r.status for r in rows if r.kind == kind and r.status != "not capturable"]
        found[f"{kind}: pass"] = statuses.count("pass")
        found[f"{kind}: pass, % of capturable"] = 100 * statuses.count("pass") / max(len(statuses), 1)
    return found


TEXT = """## Operators of PyTorch

Each entry of torch's own test databases that supports autograd on the CPU: `op_db` (operators, and once more with
complex numbers where they take them) and `module_db` (modules). Every sample is wrapped as a module, compiled with the
exact algorithm, and its outputs and all gradients are compared with eager autograd's for random cotangents, to a
relative error of 1e-9 in float64; the first sample also in float32. An entry passes if all samples agree that
torch.export can capture: at most {most}, spread over torch's list. Sparse values count as not capturable: torch's own
`run_decompositions` takes none. Random operators are compared under the same draws; where eager autograd and we differ,
central differences decide.
"""


def document(rows: Sequence[Row]) -> str:
    """The counts, and every entry that does not pass with its reason."""
    kinds, shares = sorted({r.kind for r in rows}), figures(rows)
    heads = ("kind", "entries", *STATUSES, "pass, of the capturable")
    lines = [TEXT.format(most=MOST), f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for kind in kinds:
        counts = Counter(r.status for r in rows if r.kind == kind)
        share = f"{shares[f'{kind}: pass, % of capturable']:.1f} %"
        lines.append(f"| {' | '.join([kind, str(counts.total()), *(str(counts[s]) for s in STATUSES), share])} |")
    lines += ["", "| entry | kind | status | samples | reason |", "|---|---|---|---|---|"]
    for r in sorted((r for r in rows if r.status != "pass"), key=lambda r: (r.status, r.name, r.kind)):
        reason = r.reason.replace("|", "/")
        lines.append(f"| `{r.name}` | {r.kind} | {r.status} | {r.passed} of {r.total} | {reason} |")
    return "\n".join(lines)
