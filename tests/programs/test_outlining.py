"""What repeats in a generated file becomes a function of its own, and the file computes the same to the last bit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from helpers.models import seeded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pccompile
from pccompile import PCModule
from pccompile.backends.torch import Source, emit
from pccompile.backends.torch.outline import Outlining
from pccompile.backends.torch.repeats import repeats
from pccompile.backends.torch.words import Words, pattern, spelled
from pccompile.diagnostics import CompileError
from pccompile.ir import Program
from pccompile.pipeline import Options, schedule
from pccompile.runtime.loaded_program import load

EVERYTHING = Outlining(least_calls=2, least_lines=1)
"""Whatever stands twice."""
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
}
WIDTH, BATCH = 4, 3
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "zil": {},
    **{
        f"fixed-prediction {lowering}": {"steps": 7, "rate": 0.3, "lowering": lowering}
        for lowering in ("closed-form", "combinations", "exponentials", "relax")
    },
    "strict": {"steps": 4, "rate": 0.1},
    "alm": {"steps": 3, "rate": 0.1},
    "langevin": {"steps": 2, "burn_in": 3, "rate": 0.1, "temperature": 0.01},
    "error-optimization": {"steps": 2, "rate": 0.1},
    "incremental": {"steps": 2, "rate": 0.1},
}


class Layer(nn.Module):
    """x + c · B(activation(A x)), normalised and dropped out where it is told to be."""

    def __init__(self, kind: str, factor: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if kind == "norm" else nn.Identity()
        self.drop = nn.Dropout(0.3) if kind == "drop" else nn.Identity()
        self.kind, self.factor = kind, factor

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.a(x))
        if self.kind == "branch":
            return x + self.b(torch.tanh(inner) * torch.sigmoid(inner))
        return x + self.factor * self.b(self.drop(torch.tanh(inner)))


class Stack(nn.Module):
    """Layers one behind another: `recipe` has for each what it is, its literal, and whether the one before is taken."""

    def __init__(self, recipe: Sequence[tuple[str, float, bool]], names: Sequence[str] = ()) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for kind, factor, shared in recipe:
            if kind == "nested":
                layers.append(nn.Sequential(*(Layer("plain", factor) for _ in range(3)), nn.Linear(WIDTH, WIDTH)))
            else:
                layers.append(layers[-1] if shared and layers else Layer(kind, factor))
        self.names = names
        self.layers = nn.ModuleDict(dict(zip(names, layers, strict=True))) if names else nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values() if isinstance(self.layers, nn.ModuleDict) else self.layers:
            x = layer(x)
        return x


class Convolved(nn.Module):
    """A convolution with batch norm, then a pooling of several results or a residual."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.before, self.after = kind, nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.norms, self.pool = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(3)), nn.MaxPool2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norms[0](self.before(x)))
        if self.kind == "pool":
            return self.pool(inner)[..., :2, :2]
        inner = torch.relu(self.norms[1](self.after(inner)))
        return torch.relu(x + self.norms[2](self.after(inner)))


class Image(nn.Module):
    """Layers of convolutions on an image of two by two."""

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 1), *map(Convolved, kinds))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x.view(-1, 1, 2, 2)).mean(1).flatten(1))


class Recurrent(nn.Module):
    """Two LSTM layers over five steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.unsqueeze(1).expand(-1, 5, -1))[0][:, -1])


def compiled(build: Callable[[], nn.Module]) -> PCModule:
    pc = pccompile.compile(seeded(build), (torch.randn(BATCH, WIDTH, dtype=torch.float64),), check=False)
    pc.train()
    return pc


def programs(pc: PCModule) -> dict[str, Program]:
    """The programs of all algorithms that the model has."""
    found = {}
    for name, how in ALGORITHMS.items():
        with contextlib.suppress(CompileError):
            found[name] = schedule(pc.compiled.pc, Options(name.partition(" ")[0], None, how))
    return found


def computed(text: str, pc: PCModule, source: Source) -> dict[str, Any]:
    """All that the functions of a file return and leave in the buffers."""
    functions = load(text, "outlining")
    x, y = torch.randn(BATCH, WIDTH, dtype=torch.float64), torch.randn(BATCH, WIDTH, dtype=torch.float64)
    params, buffers = pc.tables(pc.prepare((x,)))
    params = {k: p.detach().clone() for k, p in params.items()}
    buffers = {k: b.clone() for k, b in buffers.items()}
    (name,) = re.findall(r'inputs\["(\w+)"\]', text)[:1]
    torch.manual_seed(1)
    outputs, context = functions["predict"](params, buffers, {name: x})
    loss, sent = functions["clamp"](outputs, [y])
    arguments = [y] if source.moving else sent
    inferred = functions["infer"](params, context, arguments)
    slots = inferred if isinstance(inferred, tuple) else (inferred,)
    learned = functions["learn"](params, context, *slots)
    swept = functions["infer_and_learn"](params, context, arguments)
    torch.manual_seed(1)
    step = functions["step"](params, {k: b.clone() for k, b in buffers.items()}, {name: x}, [y])
    return {
        "outputs": outputs,
        "loss": loss,
        "slots": slots,
        "learned": learned,
        "swept": swept,
        "step": step,
    } | buffers


def assert_same(pc: PCModule, program: Program) -> Source:
    """The file with what repeats as functions; it computes what the file does in which all is written out."""
    plain, short = (emit(program, outlining=o) for o in (None, EVERYTHING))
    assert not plain.blocks
    torch.manual_seed(0)
    wanted = computed(plain.text, pc, plain)
    torch.manual_seed(0)
    near = {"rtol": 1e-13, "atol": 1e-14}  # a kernel rounds by how memory lies, which a function's arguments may change
    torch.testing.assert_close(computed(short.text, pc, short), wanted, **near, equal_nan=True)
    return short


recipes = st.lists(
    st.tuples(
        st.sampled_from(("plain", "plain", "norm", "drop", "branch", "nested")),
        st.sampled_from((1.0, 0.5, 0.5)),
        st.sampled_from((False, False, True)),
    ),
    min_size=3,
    max_size=6,
)


@settings(max_examples=2, **SETTINGS)
@given(recipes)
def test_any_stack(recipe: list[tuple[str, float, bool]]) -> None:
    pc = compiled(lambda: Stack(recipe))
    for program in programs(pc).values():
        assert_same(pc, program)


@pytest.mark.slow
@settings(max_examples=40, **SETTINGS)
@given(recipes)
def test_any_stack_at_length(recipe: list[tuple[str, float, bool]]) -> None:
    pc = compiled(lambda: Stack(recipe))
    for program in programs(pc).values():
        assert_same(pc, program)


@pytest.mark.quick(1)
@pytest.mark.parametrize("kinds", [["pool"] * 4, ["residual"] * 3 + ["pool"] + ["residual"] * 3])
def test_convolutions(kinds: list[str]) -> None:
    """Operations of several results, steps that wait for their turn, and what only later sweeps read."""
    pc = compiled(lambda: Image(kinds))
    for program in programs(pc).values():
        assert_same(pc, program)


@pytest.mark.parametrize("kind", ["plain", "norm", "drop", "branch"])
def test_equal_layers_share_a_function(kind: str) -> None:
    pc = compiled(lambda: Stack([(kind, 1.0, False)] * 4))
    found = programs(pc)
    short = assert_same(pc, found["exact"])
    assert {name for name, _ in short.blocks} >= {"predict", "infer", "infer_and_learn"}
    assert len(re.findall(r"^    .* = predict_layers\(", short.text, re.MULTILINE)) >= 3


def test_unrolled_steps_share_a_function() -> None:
    pc = compiled(Recurrent)
    for program in programs(pc).values():
        assert assert_same(pc, program).blocks or program.algorithm != "exact"


def test_a_literal_tells_layers_apart() -> None:
    """The function of the layers with one factor is not called for the layer with the other."""
    factors = [0.5, 0.5, 0.25, 0.5, 0.5]
    pc = compiled(lambda: Stack([("plain", f, False) for f in factors]))
    short = assert_same(pc, programs(pc)["exact"])
    blocks = re.findall(r"^def (predict_\w+)\(.*?(?=^def |^@)", short.text, re.MULTILINE | re.DOTALL)
    bodies = {b: re.search(rf"^def {b}\(.*?(?=^def |^@)", short.text, re.MULTILINE | re.DOTALL) for b in blocks}
    assert any(m and "0.5" in m.group() for m in bodies.values())
    assert all(m is None or "0.25" not in m.group() for m in bodies.values())
    assert "0.25" in short.text


def test_keys_are_data() -> None:
    """Names of modules that would be code or places in a format string."""
    names = ['{block}"', "{0}", "a'b\\", "block", "params"]
    pc = compiled(lambda: Stack([("plain", 1.0, False)] * 5, names))
    short = assert_same(pc, programs(pc)["exact"])
    assert short.blocks


def test_small_files_stay_written_out() -> None:
    pc = compiled(lambda: Stack([("plain", 1.0, False)] * 3))
    assert not pc.compiled.source.blocks


def test_deep_files_are_short_by_themselves() -> None:
    pc = compiled(lambda: Stack([("plain", 1.0, False)] * 12))
    plain = emit(pc.compiled.program, outlining=None).text
    assert pc.compiled.source.blocks
    assert len(pc.source) < len(plain) / 2


class TwoHeads(nn.Module):
    """A deep stack with an output half way and one at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (Stack([("plain", 1.0, False)] * 8) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = self.first(x)
        return half, self.second(half)


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=str)
def test_losses_of_some_outputs(used: tuple[int, ...]) -> None:
    """Against autograd, twice: what a loss sends back takes nothing from the next one."""
    pc, plain = compiled(TwoHeads), seeded(TwoHeads)
    assert ("infer_and_learn", "first_layers_3_a") in pc.compiled.source.blocks
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    for _ in range(2):
        for model in (pc, plain):
            outputs = model(x)
            torch.stack([outputs[i].square().sum() for i in used]).sum().backward()
    for (name, p), q in zip(pc.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_graph_that_is_kept() -> None:
    pc, plain = (make(lambda: Stack([("norm", 1.0, False)] * 8)) for make in (compiled, seeded))
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    for model in (pc, plain):
        loss = model(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for p, q in zip(pc.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_vertex_inside_a_function_is_explained() -> None:
    pc = compiled(lambda: Stack([("plain", 1.0, False)] * 12))
    page = str(pc.explain("layers.7.a"))
    assert "# predict, in predict_layers" in page
    assert "F.linear(" in page
    assert 'params["layers.7.a.weight"]' in page


def test_a_compiler_takes_the_functions_whole() -> None:
    pc = compiled(lambda: Stack([("norm", 1.0, False)] * 5))
    source = emit(programs(pc)["exact"], outlining=EVERYTHING)
    functions = load(source.text, "whole")
    x, y = torch.randn(BATCH, WIDTH, dtype=torch.float64), torch.randn(BATCH, WIDTH, dtype=torch.float64)
    params, buffers = pc.tables(pc.prepare((x,)))
    params = {k: p.detach() for k, p in params.items()}
    run = torch.compile(functions["step"], backend="aot_eager", fullgraph=True)
    found, wanted = (
        step(params, {k: b.clone() for k, b in buffers.items()}, {"x": x}, [y]) for step in (run, functions["step"])
    )
    torch.testing.assert_close(found, wanted)


def test_outlined_source(golden: Callable[..., None]) -> None:
    pc = compiled(lambda: Stack([("plain", 1.0, False)] * 4))
    golden(emit(programs(pc)["exact"], outlining=EVERYTHING).text)


# parts


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 4))
def test_repeats_are_there(tokens: list[int], shortest: int) -> None:
    """Each stands at all its places, which do not overlap; whatever stands twice, a repeat shares some of."""
    found = list(repeats(tokens, 2, shortest))
    for r in found:
        runs = [tokens[p : p + r.length] for p in r.places]
        assert len(runs) >= 2
        assert all(run == runs[0] for run in runs)
        assert len(runs[0]) == r.length >= shortest
        assert all(b - a >= r.length for a, b in zip(r.places, r.places[1:], strict=False))
    longest = next(
        (n for n in range(len(tokens) // 2, 0, -1) if any(_twice(tokens, i, n) for i in range(len(tokens)))), 0
    )
    assert bool(found) == (longest >= shortest)


def _twice(tokens: list[int], start: int, length: int) -> bool:
    run = tokens[start : start + length]
    rest = range(start + length, len(tokens) - length + 1)
    return len(run) == length and any(tokens[i : i + length] == run for i in rest)


@settings(max_examples=60, **SETTINGS)
@given(st.lists(st.text(max_size=12), min_size=2, max_size=4), st.text(max_size=8), st.text(max_size=8))
def test_a_key_with_its_words_is_the_key(middles: list[str], before: str, behind: str) -> None:
    texts = [f"{before}{m}{behind}" for m in middles]
    words = Words(len(texts))
    template = words.template(texts)
    names = [f"w{i}" for i in range(len(words.columns))]
    for text, arguments in zip(texts, words.arguments(), strict=True):
        scope: Mapping[str, object] = dict(zip(names, map(eval, arguments), strict=True))
        assert eval(spelled(template, names), dict(scope)) == text


def test_a_comment_stands_for_all() -> None:
    assert pattern(["3.a · ε[n4]", "12.a · ε[n13]"]) == "*.a · ε[n*]"
