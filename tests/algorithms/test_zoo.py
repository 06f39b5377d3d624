"""Every algorithm on every model of the zoo: Z-IL is exact inference, and what contains strict inference equals it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers.cases import built, cases, drawn
from helpers.models import Gradients, distance
from torch import Tensor
from zoo import ZOO, Case

import pccompile
from pccompile import PCModule
from pccompile.algorithms import ALGORITHMS
from pccompile.backends.torch import emit
from pccompile.diagnostics import CompileError
from pccompile.pipeline import Compiled, Options, compile_imported, schedule
from pccompile.runtime.loaded_program import load

QUICK = {
    "paper_rnn",
    "rnn_relu",
    "mlp_tanh",
    "mlp_prelu",
    "siamese",
    "dict_output",
    "frozen_parameter",
    "norms",
    "heads",
}
QUICK |= {"mixture_of_experts", "vae", "equilibrium", "attention", "weight_norm_parametrised", "quantised"}
QUICK |= {"spatial_transformer", "fourier_layer", "routed_experts"}
SLOW = set(ZOO) - QUICK
STEPS = 2
STRICT: dict[str, dict[str, Any]] = {
    "strict": {"steps": STEPS},
    "alm": {"steps": STEPS, "penalty": 1.0, "dual_rate": 0.0},
    "nudged": {"steps": STEPS, "nudge": 1.0, "phases": "positive"},
    "langevin": {"steps": 1, "burn_in": STEPS - 1, "rate": 0.1, "temperature": 0.0},
}
BACKPROP: dict[str, dict[str, Any]] = {"exact": {}, "zil": {}, "zil full": {"dynamics": "full"}}


class Bench:
    """A model with one batch, and what each algorithm's generated file makes of squared error there."""

    def __init__(self, case: Case) -> None:
        self.inputs, _ = drawn(case, torch.float64)
        model = built(case.build, torch.float64)
        self.pc: PCModule = pccompile.compile(model, self.inputs, granularity="layer", check=False)
        self.runtime, self.name = self.pc.prepare(self.inputs), case.name

    def gradients(self, algorithm: str, settings: dict[str, Any]) -> Gradients:
        """The gradients of the file that an algorithm becomes. Raises CompileError where it does not go there."""
        compiled = self.runtime.compiled
        assert compiled is not None
        source = emit(schedule(compiled.pc, Options(algorithm.split()[0], None, settings)))
        functions = load(source.text, self.name)
        params, buffers = self.pc.tables(self.runtime)
        torch.manual_seed(7)
        buffers = {name: b.clone() for name, b in buffers.items()}
        outputs, context = functions["predict"](params, buffers, self.runtime.interface.bind(self.inputs, {}))
        targets: list[Tensor] = [torch.zeros_like(outputs[i]) for i in source.errors]
        given = targets if source.moving else functions["clamp"](outputs, targets)[1]
        torch.manual_seed(8)
        found: Gradients = functions["infer_and_learn"](params, context, given)
        return found


@pytest.mark.parametrize("case", cases(ZOO, SLOW))
def test_every_algorithm_on_every_model(case: Case) -> None:
    bench = Bench(case)
    exact, zil, full = (bench.gradients(a, settings) for a, settings in BACKPROP.items())
    assert distance(zil, exact, floor=1e-3) < 1e-9
    assert distance(full, exact, floor=1e-3) < 1e-9
    first, *others = (bench.gradients(a, settings) for a, settings in STRICT.items())
    for found in others:
        assert found.keys() == first.keys()
        assert distance(found, first, floor=1e-3) < 1e-13
    moved = bench.gradients("error-optimization", {"steps": STEPS})
    assert moved.keys() == first.keys()
    compiled = bench.runtime.compiled
    assert compiled is not None
    load(emit(schedule(compiled.pc, Options("incremental", None, {"steps": STEPS}))).text, case.name)
    for name, algorithm in ALGORITHMS.items():
        if algorithm.mirrors:
            loads_or_says_why_not(compiled, Options(name))
    loads_or_says_why_not(compiled, Options("exact", feedback="dkp"))


def loads_or_says_why_not(compiled: Compiled, options: Options) -> None:
    """A file that can be loaded; or which vertex has no mirror or no direct feedback, and why."""
    try:
        source, why = compile_imported(compiled.imported, options).source, ""
    except CompileError as e:
        source, why = None, e.problems[0].what
    if source is not None:
        load(source.text, options.algorithm)
        return
    mirrors = (r"vertex \w+ cannot be mirrored: \w+", r"\d+ outputs that carry", "what no vertex predicts", "a sample")
    direct = (r"feedback: \w+ \w+ is one operation", r"feedback dkp: \w+")
    assert any(re.search(words, why) for words in (*mirrors, *direct)), why
