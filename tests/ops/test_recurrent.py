"""torch.nn's recurrent networks: every option, free batch size and length, dropout from eager torch's stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from pccompile.frontends.signature import CaptureForm
from pccompile.ir import Ref, TensorType
from pccompile.ops import OPS, Builder
from pccompile.pipeline import Options, compile_imported, import_model


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.core = getattr(nn, kind)(4, 5, **options)
        shape = (options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1), 1, 5)
        cell = (*shape[:2], options["proj_size"]) if options.get("proj_size") else shape
        self.h, self.c = nn.Parameter(torch.randn(cell)), nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch = x.shape[0 if self.core.batch_first else 1]
        first = [s.expand(-1, batch, -1).contiguous() for s in (self.h, self.c)]
        states, last = self.core(x, (first[0], first[1]) if isinstance(self.core, nn.LSTM) else first[0])
        return tuple(t.sin() for t in (states, *(last if isinstance(last, tuple) else (last,))))


def check(model: nn.Module, x: Tensor, other: Tensor, compiler: Any = None, **dynamic: Any) -> None:
    """The model compiled at `x` gives autograd's gradients at `other`."""
    imported = import_model(model, (x,), form=CaptureForm(**dynamic))
    compiled = compile_imported(imported, Options("exact"))
    assert not any("lstm.input" in n.op for v in compiled.pc.vertices for n in v.prediction)
    space: dict[str, Any] = {}
    exec(compiled.source.text, space)
    params = {k: p.detach() for k, p in model.named_parameters()}
    torch.manual_seed(3)
    run = compiler(space["predict"]) if compiler else space["predict"]
    outputs, context = run(params, {}, {next(iter(imported.graph.inputs)): other})
    torch.manual_seed(3)
    results = model(other)
    errors = [torch.randn_like(r) for r in results]
    names = [k for k, p in model.named_parameters()]
    expected = torch.autograd.grad(results, list(model.parameters()), errors, allow_unused=True)
    sweep = compiler(space["infer_and_learn"]) if compiler else space["infer_and_learn"]
    found = sweep(params, context, [-e for e in errors])
    for output, result in zip(outputs, results, strict=True):
        torch.testing.assert_close(output, result.detach())
    for name, gradient in zip(names, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-4 if gradient.dtype == torch.float32 else 1e-9, atol=1e-6
            )


PLAIN = {"bias": False, "batch_first": True}
DEEP = {"num_layers": 2, "bidirectional": True, "dropout": 0.4}


@pytest.mark.parametrize("kind, options", [("LSTM", PLAIN), ("LSTM", DEEP), ("GRU", DEEP), ("RNN", PLAIN)], ids=str)
def test_options(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, **options).double()
    x = torch.randn(6, 6, 4).double()
    check(model, x, x.flip(0))


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_free_length() -> None:
    """Neither the length nor the batch size is baked into a layer's rule. (torch.export itself fixes the length.)"""
    dynamic = ({0: Dim("time", min=2, max=99), 1: Dim("batch", min=2, max=99)},)
    imported = import_model(Doubled(), (torch.randn(6, 3, 4),), form=CaptureForm(dynamic))
    x = imported.graph.inputs["x"]
    small = {"h": (x.shape[1], 5), "w_ih": (15, 4), "w_hh": (15, 5), "b_ih": (15,), "b_hh": (15,)}
    b = Builder({"x": x} | {k: TensorType(s) for k, s in small.items()}, imported.typer, "")
    b.wants = set(b.types)
    whole = b("pcc.gru_layer", Ref("x"), *map(Ref, small), False)
    states = b.get(whole, 0)
    b.wants.add(whole)
    node = next(n for n in b.nodes if n.name == whole)
    rule = OPS["pcc.gru_layer"].rule
    assert rule is not None
    for argument, message in rule(b, node, (states, None)).items():
        assert isinstance(message, Ref)
        assert b.type(message) == b.types[argument]


def test_projections() -> None:
    torch.manual_seed(0)
    model = Recurrent("LSTM", proj_size=2).double()
    x = torch.randn(4, 3, 4).double()
    check(model, x, x)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_single_precision(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 4)
    check(Recurrent(kind, nonlinearity="relu") if kind == "RNN" else Recurrent(kind), x, x)


def test_under_torch_compile() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4)
    check(Recurrent("LSTM"), x, x, lambda f: torch.compile(f, backend="aot_eager"))
