"""What one algorithm does with a batch: errors and energies by step, and the gradients that it leaves after so many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.algorithms import ALGORITHMS
from pccompile.diagnostics import CompileError
from pccompile.pipeline import Options, compile_imported
from pccompile.report.gradients import Bench, Gradients
from pccompile.report.losses import clamp, cloned
from pccompile.report.trace import Trace, recorded
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.module import CompiledModule
from pccompile.runtime.reached_outputs import reaching

SIDE = 16
"""An error is shown as a picture of so many pixels a side at most."""
PIXELS = 400_000
"""So many pixels all pictures of one run may have together; beyond, they get smaller."""
DECADES = 3


@dataclass(frozen=True)
class Run:
    """One algorithm on one batch. gradients: by number of steps, those that learning finds then."""

    runtime: Runtime
    trace: Trace
    gradients: Mapping[int, Gradients]


def program_of(pc: CompiledModule, base: Runtime, algorithm: str, settings: Mapping[str, Any]) -> Runtime:
    """The model of `base` compiled by another algorithm, so that its inference can be recorded."""
    assert base.compiled is not None
    record = ALGORITHMS[algorithm]
    if record.mirrors is not None:
        raise CompileError(f"{algorithm} has layers of its own", hint="compile the model with it, and explore that")
    chosen = dict(settings)
    if any(f.name == "lowering" for f in fields(record.settings)):
        chosen["lowering"] = "relax"
    options = Options(algorithm, pc.options.vertices, chosen)
    compiled = compile_imported(base.compiled.imported, options, base.compiled.loss, record=True)
    how: dict[str, Any] = {"options": options, "compiled": compiled, "_scope": {}}
    return replace(base, source=compiled.source, reaching=reaching(compiled), **how)


def run(bench: Bench, runtime: Runtime) -> Run:
    """Record inference of the batch, and learn after 1, 2, 4 … steps."""
    assert runtime.compiled is not None
    arguments = dict(runtime.compiled.program.arguments)
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed)
        trace = recorded(bench.pc, runtime, bench.args, bench.kwargs, bench.target, bench.loss)
    total = arguments.get("steps")
    counts = doubling(int(total)) if isinstance(total, int | float) else [trace.steps]
    found: dict[int, Gradients] = {}
    if not runtime.source.updates:
        for steps in counts:
            how = {**arguments, "steps": steps} if "steps" in arguments else arguments
            found[steps] = learned(bench, runtime, how)
    return Run(runtime, trace, found)


def doubling(total: int) -> list[int]:
    """1, 2, 4 … and `total`."""
    return [*(2**k for k in range(max(total, 1).bit_length()) if 2**k < total), max(total, 1)]


def learned(bench: Bench, runtime: Runtime, arguments: Mapping[str, Any]) -> Gradients:
    """The parameters' gradients after inference with these arguments."""
    params, buffers = bench.pc.tables(runtime)
    inputs = {k: t.detach() for k, t in runtime.interface.bind(bench.args, bench.kwargs).items()}
    target = bench.target
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(bench.seed)
        outputs, context = runtime.function("predict")(params, cloned(buffers), inputs)
        if runtime.source.moving:
            given = [t for t in pytree.tree_leaves(target) if isinstance(t, Tensor)]
        else:
            given = clamp(runtime, outputs, bench.loss, target)[1]
        found, _ = parted(runtime.function("infer_and_learn")(params, context, given, **arguments))
    names = {id(p): k for k, p in bench.parameters().items()}
    return {names[id(params[k])]: g for k, g in found.items() if k in params and id(params[k]) in names}


def as_data(made: Run, true: Gradients) -> dict[str, Any]:
    """A run in numbers: `docs/explorer.md` says what they are. What is no number is None."""
    trace = made.trace
    errors = {n: [rounded(_rms(s)) for s in e] for n, e in trace.errors.items()}
    energy = {n: [rounded(float(x)) for x in e] for n, e in trace.energy.items()}
    steps = list(made.gradients)
    parameters = {}
    for name, g in true.items():
        if g is None or not made.gradients:
            continue
        rows = [compared(found.get(name), g) for found in made.gradients.values()]
        parameters[name] = {"cosine": [c for c, _ in rows], "ratio": [r for _, r in rows]}
    return {
        "steps": trace.steps,
        "settings": {k: v if isinstance(v, int | float) else "by vertex" for k, v in trace.arguments.items()},
        "settles": trace.settles,
        "diverges": trace.first_not_finite(),
        "errors": errors,
        "energy": energy,
        "free_energy": [rounded(float(x)) for x in trace.free_energy],
        "loss": [rounded(float(x)) for x in trace.loss],
        "pictures": pictures(trace),
        "gradients": {"steps": steps, "parameters": parameters},
    }


def compared(g: Tensor | None, true: Tensor) -> tuple[float | None, float | None]:
    """Cosine and ratio of norms of a gradient to backpropagation's; None where one of them is 0 or no number."""
    if g is None or g.shape != true.shape or not float(true.norm()):
        return None, None
    a, b = g.flatten().double(), true.flatten().double()
    ratio = rounded(float(a.norm() / b.norm()))
    return (rounded(float(F.cosine_similarity(a, b, 0, 1e-300)), 6) if ratio else None), ratio


def pictures(trace: Trace) -> dict[str, Any]:
    """|ε| of the first sample at each step: width, height, what 255 stands for, and one byte a pixel, in hexadecimal.

    A byte is linear in log |ε|, `DECADES` decades below the greatest; 0 is below.
    """
    side = SIDE
    while side > 1 and len(trace.errors) * (trace.steps + 1) * side * side > PIXELS:
        side //= 2
    shown: dict[str, list[Any]] = {}
    for name, errors in trace.errors.items() if side >= 4 else ():
        found = picture_of(errors[:, 0] if errors.dim() > 1 else errors[:, None], side)
        if found is not None:
            shown[name] = found
    return {"decades": DECADES, "of": shown}


def picture_of(steps: Tensor, side: int) -> list[Any] | None:
    """The picture of one sample at each step; None where there is nothing to see."""
    if not steps.numel() or steps.is_complex():
        return None
    flat = _picture(steps, side)
    top = float(flat.nan_to_num(0.0, 0.0, 0.0).max())
    if not top:
        return None
    shade = 255 * (1 + torch.log10(flat.clamp_min(1e-30) / top) / DECADES)
    pixels = shade.nan_to_num(255.0).clamp(0, 255).to(torch.uint8)
    return [flat.shape[2], flat.shape[1], rounded(top), pixels.cpu().numpy().tobytes().hex()]


def _picture(errors: Tensor, side: int) -> Tensor:
    """|ε| as [steps, height, width], each pixel the root mean square of what it stands for."""
    e = errors.detach().float().square()
    if e.dim() > 3:
        e = e.flatten(1, -3).mean(1)
    e = e.reshape(e.shape[0], 1, -1) if e.dim() < 3 else e
    if e.shape[1] == 1 and e.shape[2] > side:
        width = min(side, math.ceil(math.sqrt(e.shape[2])))
        e = F.adaptive_avg_pool1d(e, width * min(side, math.ceil(e.shape[2] / width)))
        e = e.reshape(e.shape[0], -1, width)
    return F.adaptive_avg_pool2d(e[:, None], (min(side, e.shape[1]), min(side, e.shape[2])))[:, 0].sqrt()


def rounded(x: float, digits: int = 4) -> float | None:
    """So many digits; None for what is no number."""
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def _rms(errors: Tensor) -> float:
    return float(errors.abs().double().square().mean().sqrt()) if errors.numel() else 0.0
