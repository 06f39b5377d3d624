"""What each parameter's rule reads, on networks where that is known by hand."""

from __future__ import annotations

from typing import Any

import torch
from algorithms.nets import problem
from torch import Tensor, nn

import pccompile
from pccompile.analysis.plasticity import Plasticity


def rules(model: nn.Module, x: Tensor, algorithm: str = "strict", **how: Any) -> dict[str, Plasticity]:
    pc = pccompile.compile(model, (x,), algorithm=algorithm, loss=nn.MSELoss(reduction="sum"), check=False, **how)
    return {r.name: r for r in pc.locality().rules}


def test_a_weight_before_an_activation_function_has_three_factors_and_a_last_one_two() -> None:
    found = rules(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3))
    assert {k: (r.kind, r.own_state) for k, r in found.items()} == {
        "0.weight": ("three-factor", True),
        "0.bias": ("error and state", True),
        "2.weight": ("two-factor", False),
        "2.bias": ("error only", False),
    }
    assert found["0.weight"].presynaptic == ("input",)


def test_a_layer_of_one_operation_a_vertex_has_two_factors() -> None:
    found = rules(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3), granularity="op")
    assert found["0.weight"].kind == "two-factor"


def test_the_gain_of_a_normalisation_is_read_by_the_weight_before_it_and_by_nothing_else() -> None:
    pc = problem("cnn").compile("strict")
    found = {r.name: r for r in pc.locality().rules}
    assert found["first.weight"].kind == "reads other weights"
    assert found["first.weight"].weights == ("n1.weight",)
    assert found["second.weight"].presynaptic == ("tanh",)
    assert found["n2.bias"].kind == "error only"
    assert found["n2.weight"].kind == "error and state"


def test_a_weight_that_several_vertices_read_has_as_many_places() -> None:
    found = {r.name: r for r in problem("lstm").compile("strict").locality().rules}
    assert found["cell.weight_hh"].places == 3
    assert found["cell.weight_ih"].kind == "two-factor"


def test_a_parameter_behind_a_derivative_of_zero_is_fixed() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) + torch.sign(self.a(x)).sum(1, keepdim=True)

    kinds = {k: r.kind for k, r in rules(Still(), torch.randn(5, 3)).items()}
    assert kinds["b.weight"] == "two-factor"
    assert kinds.get("a.weight", "fixed") == "fixed"


def test_what_a_rule_reads_is_what_its_gradient_changes_with() -> None:
    """A vertex by hand: with its error given, the gradient of each parameter moves with nothing else than reported."""
    p = problem("cnn")
    found = {r.name: r for r in p.compile("strict").locality().rules}
    own = {n: q.detach().clone() for n, q in p.model.named_parameters() if n.startswith(("second.", "n2."))}
    presynaptic, error = torch.randn(4, 4, 5, 5).double(), torch.randn(4, 4, 5, 5).double()

    def gradients(h: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        read = {n: w.clone().requires_grad_() for n, w in weights.items()}
        a = nn.functional.conv2d(h, read["second.weight"], read["second.bias"], padding=1)
        v = nn.functional.batch_norm(a, None, None, read["n2.weight"], read["n2.bias"], training=True)
        return torch.autograd.grad(v, list(read.values()), error)

    first = gradients(presynaptic, own)
    for changed in (*own, "tanh"):
        h = presynaptic + 1.0 * torch.randn_like(presynaptic) if changed == "tanh" else presynaptic
        moved = gradients(h, {n: torch.randn_like(w) if n == changed else w for n, w in own.items()})
        for name, a, b in zip(own, first, moved, strict=True):
            if float((a - b).norm()) > 1e-6 * float(a.norm()) and float(a.norm()) > 1e-9:
                r = found[name]
                assert changed in (*r.weights, *r.presynaptic) or r.own_state, (changed, name)
    assert float((gradients(presynaptic, own)[3] - error.sum((0, 2, 3))).norm()) < 1e-9


def test_transposed_weights_are_found_through_what_is_computed_of_them() -> None:
    assert "cell.weight_hh" in problem("lstm").compile("strict").locality().found.transported
    assert "layer.norm1.bias" not in problem("transformer").compile("strict").locality().found.transported
