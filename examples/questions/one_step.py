"""What if the inner loop runs once with the whole error? Fixed prediction at rate 1, after 1, 2, 3 … steps."""

from __future__ import annotations

import torch
from torch import nn

import pccompile


def main() -> None:
    """A line a number of steps: each weight's gradient as a part of backpropagation's."""
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).double()
    x, y = torch.randn(16, 8, dtype=torch.float64), torch.randn(16, 8, dtype=torch.float64)
    weights = [p for p in model.parameters() if p.dim() > 1]
    true = torch.autograd.grad((model(x) - y).pow(2).sum(), weights)
    print("‖g‖ / ‖g backprop‖ of the weights of layers 1 to 4, rate 1")
    for steps in range(1, 5):
        pc = pccompile.compile(
            model, (x,), algorithm="fixed-prediction", granularity="layer", steps=steps, rate=1.0, check=False
        )
        mine = torch.autograd.grad((pc(x) - y).pow(2).sum(), weights)
        parts = [(m.norm() / t.norm()).item() for m, t in zip(mine, true, strict=True)]
        print(f"{steps} steps  " + "  ".join(f"{p:.4f}" for p in parts))
    pc = pccompile.compile(model, (x,), algorithm="exact", check=False)
    mine = torch.autograd.grad((pc(x) - y).pow(2).sum(), weights)
    parts = [(m.norm() / t.norm()).item() for m, t in zip(mine, true, strict=True)]
    print("exact    " + "  ".join(f"{p:.4f}" for p in parts) + "   (each vertex once, outputs first)")


if __name__ == "__main__":
    main()
