"""Is the update a graph Laplacian? The matrix by which strict inference moves the values of a chain of scalars."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pccompile

RATE, DEPTH = 0.2, 4


class Chain(nn.Module):
    """Linear scalars, one after the other, each times its weight."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor([[w]], dtype=torch.float64)) for w in weights)

    def forward(self, x: Tensor) -> Tensor:
        """From `[batch, 1]` to the same."""
        for w in self.weights:
            x = x @ w
        return x


def operator(weights: list[float]) -> Tensor:
    """L of v ← v − rate (L v − b), `[DEPTH, DEPTH]`: what takes each move of the values to the next one."""
    model, one = Chain(weights), torch.ones(1, 1, dtype=torch.float64)
    pc = pccompile.compile(
        model,
        (one,),
        algorithm="strict",
        steps=DEPTH + 1,
        rate=RATE,
        loss=lambda output, target: 0.5 * (output - target).pow(2).sum(),
        check=False,
    )
    values = pc.infer(one, target=3 * one).values
    path = torch.stack([v.flatten() for v in values.values()])[:DEPTH]
    moves = path.diff(dim=1)  # b drops out; news from the output comes one vertex farther in each
    step: Tensor = moves[:, 1:] @ torch.linalg.inv(moves[:, :-1])
    return (torch.eye(DEPTH, dtype=torch.float64) - step) / RATE


def main() -> None:
    """With all weights 1, and with others."""
    for weights in ([1.0] * (DEPTH + 1), [1.0, 0.5, 2.0, 1.0, -1.0]):
        print(f"weights {weights}")
        for row in operator(weights).tolist():
            print("  " + " ".join(f"{v + 0.0:6.2f}".replace("-0.00", " 0.00") for v in row))


if __name__ == "__main__":
    main()
