"""What do skip connections look like? A residual block's rules, and how far its errors come in few steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pccompile


class Block(nn.Module):
    """x + W₂ tanh(W₁ x), four times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.outer = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """From `[batch, 8]` to the same."""
        for a, b in zip(self.inner, self.outer, strict=True):
            x = x + b(torch.tanh(a(x)))
        return x


def main() -> None:
    """The rule of a sum in the middle, then the gradient of the first block after a few steps."""
    torch.manual_seed(0)
    model = Block().double()
    x, y = torch.randn(16, 8, dtype=torch.float64), torch.randn(16, 8, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), algorithm="exact", check=False)
    shown = ("vertex", "parents", "children", "prediction", "error", "from", "messages", "to")
    print(
        "\n".join(
            line for line in str(pc.explain("add_1")).splitlines() if line.split()[:1] and line.split()[0] in shown
        )
    )
    first = dict(model.named_parameters())["outer.0.weight"]
    (true,) = torch.autograd.grad((model(x) - y).pow(2).sum(), first)
    print("\nfirst block's weight, rate 1: part of backpropagation's gradient in its direction")
    for steps in (1, 2, 3, 4, 6, 8, 12):
        pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", steps=steps, rate=1.0, check=False)
        (mine,) = torch.autograd.grad((pc(x) - y).pow(2).sum(), first)
        print(f"{steps:3} steps {((mine * true).sum() / true.pow(2).sum()).item():8.4f}")


if __name__ == "__main__":
    main()
