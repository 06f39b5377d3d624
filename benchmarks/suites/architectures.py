"""The architectures of transformers, with small random configurations: exact gradients against autograd in float64."""

from __future__ import annotations

import copy
import logging
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import MODEL_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import pccompile
from pccompile import CompileError
from suites.doubled import Doubled
from suites.left_out import LEFT_OUT
from suites.rows import Row
from suites.tiny_configs import tiny
from suites.tiny_inputs import arguments
from suites.tiny_overrides import INPUTS

LIMIT = 1e-9
FLOORS: Mapping[str, float] = {"architectures that agree": 373}


def names() -> list[str]:
    """The model types that have a base model and can be built small."""
    return sorted(set(MODEL_MAPPING_NAMES) - set(LEFT_OUT))


@contextmanager
def quiet() -> Iterator[None]:
    """Within: transformers and torch keep their advice to themselves."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A seeded model in float64 and its arguments, those that are floats wanting gradients."""
    torch.manual_seed(0)
    config = tiny(name)
    config._experts_implementation = "batched_mm"
    kinds = MODEL_MAPPING[type(config)]
    model = (kinds[0] if isinstance(kinds, tuple) else kinds)(config)
    given = arguments(model, torch.Generator().manual_seed(1), INPUTS.get(name, {}))
    return Doubled(model), {k: _wanting(v) for k, v in given.items()}


def _wanting(value: Any) -> Any:
    return value.double().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def check(name: str, samples: int | None = None) -> list[Row]:
    """Compile one architecture, in train mode where torch.export captures that and else in eval mode."""
    with quiet():
        row = _checked(name, True)
        if row.status != "pass":
            other = _checked(name, False)
            row = other if other.status == "pass" or row.status == "not capturable" else row
        return [row]


def _checked(name: str, training: bool) -> Row:
    kind, total = "train" if training else "eval", 1
    try:
        model, given = build(name)
        model.train(training)
    except Exception as e:
        return Row(name, kind, "fail", 0, total, 0.0, _line(e))
    reference = copy.deepcopy(model)
    start = time.process_time()
    try:
        compiled = pccompile.compile(model, (), given, capture="export")
    except CompileError as e:
        seconds = time.process_time() - start
        if reason := _not_capturable(reference, given) or _captured_otherwise(reference, given):
            return Row(name, kind, "not capturable", 0, total, seconds, reason)
        return Row(name, kind, "refused", 0, total, seconds, _line(e))
    except Exception as e:
        return Row(name, kind, "fail", 0, total, time.process_time() - start, _line(e))
    seconds = time.process_time() - start
    try:
        found, wanted = gradients(compiled, given), gradients(reference, given)
        worst, where = distance(found, wanted)
    except Exception as e:
        return Row(name, kind, "fail", 0, total, seconds, _line(e))
    if worst <= LIMIT:
        return Row(name, kind, "pass", 1, total, seconds)
    if reason := _captured_otherwise(reference, given):
        return Row(name, kind, "not capturable", 0, total, seconds, reason)
    return Row(name, kind, "wrong", 0, total, seconds, f"relative error {worst:.1e} of {where}")


def _not_capturable(model: nn.Module, given: dict[str, Any]) -> str:
    """Why torch.export refuses a model; empty where it does not."""
    try:
        torch.export.export(model, (), given, strict=False)
    except Exception as e:
        return _line(e)
    return ""


def _captured_otherwise(model: nn.Module, given: dict[str, Any]) -> str:
    """How far what torch.export captured is from the model where its own outputs differ; empty where they do not."""
    try:
        outputs = {k: v for k, v in gradients(model, given).items() if k.startswith("output")}
    except Exception:
        return ""  # it does not run outside of a compiler either
    found = gradients(Doubled(torch.export.export(model, (), given, strict=False).module()), given)
    worst, where = distance({k: found.get(k) for k in outputs}, outputs)
    return f"torch.export's own program differs from the model: {worst:.1e} of {where}" if worst > LIMIT else ""


def _line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:240]


def gradients(model: nn.Module, given: dict[str, Any]) -> dict[str, Tensor | None]:
    """The outputs and, for a loss that weighs each entry at random, the gradients of parameters and float arguments."""
    given = {k: _wanting(v.detach()) if isinstance(v, Tensor) else v for k, v in given.items()}
    torch.manual_seed(2)
    leaves = [x for x in pytree.tree_leaves(model(**given)) if isinstance(x, Tensor)]
    draw = torch.Generator().manual_seed(3)
    floats = [x for x in leaves if x.is_floating_point() and x.requires_grad]
    sum((x * torch.randn(x.shape, generator=draw, dtype=x.dtype)).sum() for x in floats).backward()
    found: dict[str, Tensor | None] = {f"output {i}": x.detach() for i, x in enumerate(leaves)}
    found |= {name: p.grad for name, p in model.named_parameters()}
    found |= {f"argument {k}": v.grad for k, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return found


def distance(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None]) -> tuple[float, str]:
    """The worst relative difference and whose it is. What is 0 up to rounding is compared with the largest."""
    if found.keys() != wanted.keys():
        return float("inf"), "their names"
    finite = [w[w.isfinite()].abs() for w in wanted.values() if w is not None]
    scale = max((float(w.max()) for w in finite if w.numel()), default=0.0)
    return max((_relative(found[k], wanted[k], 1e-3 * scale), k) for k in wanted)


def _relative(found: Tensor | None, wanted: Tensor | None, least: float) -> float:
    if found is None or wanted is None:
        return 0.0 if found is wanted else float("inf")
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    finite = wanted.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(
        found[~finite].nan_to_num(), wanted[~finite].nan_to_num()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    return float((found - wanted)[finite].abs().max()) / max(float(wanted[finite].abs().max()), least, 1e-30)


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """How many architectures agree, how many do not, and how many could be tried."""
    count = Counter(row.status for row in rows)
    return {
        "architectures that agree": count["pass"],
        "architectures that are wrong": count["wrong"],
        "architectures that torch.export captures": len(rows) - count["not capturable"],
        "median seconds of CPU to compile": statistics.median([r.seconds for r in rows]) if rows else 0.0,
    }


def document(rows: Sequence[Row]) -> str:
    """The section of docs/coverage.md."""
    found, version = figures(rows), transformers.__version__
    text = f"""Every model type of transformers {version} that has a base model and can be built small from its
configuration by rules: {len(rows)} of {len(rows) + len(LEFT_OUT)} (`benchmarks/suites/left_out.py` says why not the
others). Random weights, float64 throughout, dropout 0, train mode where torch.export captures that and else eval mode.
By `exact`, outputs and the gradients of all parameters and float arguments agree with autograd to {LIMIT:g} for
**{found["architectures that agree"]:g}** of them; {found["architectures that are wrong"]:g} are wrong. Compiling takes
{found["median seconds of CPU to compile"]:.1f} s of CPU in the median. Each type: `coverage/models.csv`."""
    lines = [
        "## Architectures",
        "",
        text,
        "",
        "| result | architectures |",
        "|---|---|",
        *(f"| {status} | {count} |" for status, count in Counter(r.status for r in rows).most_common()),
        "",
    ]
    lines += [f"- {r.name}: {r.status}. {r.reason}" for r in sorted(rows, key=lambda r: r.name) if r.status != "pass"]
    return "\n".join(lines)
