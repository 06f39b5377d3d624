"""The paper's networks, with weights drawn from N(0, 0.05²) as in its published code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SPREAD = 0.05


class Scalar(nn.Module):
    """tan(√(θ v₀)) + sin(v₀²): the branching function whose gradient at v₀ the paper takes by predictive coding."""

    def __init__(self, v0: float = 5.0) -> None:
        super().__init__()
        self.v0 = nn.Parameter(torch.tensor(v0, dtype=torch.float64))

    def forward(self, theta: Tensor) -> Tensor:
        """Both are scalars of float64."""
        return torch.tan(torch.sqrt(theta * self.v0)) + torch.sin(self.v0**2)


def convolutional(classes: int = 10) -> nn.Module:
    """Two convolutions without biases, a pool between them, and three linear layers."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 5, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5, bias=False), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1600, 200, bias=False), nn.ReLU(), nn.Linear(200, 150, bias=False), nn.ReLU()),
        nn.Linear(150, classes, bias=False),
    )
    return drawn(model)


class Recurrent(nn.Module):
    """h ← tanh(W_h h + W_x x) over a sequence of letters, and W_y h of the last one."""

    h0: Tensor

    def __init__(self, letters: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(letters, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.y = nn.Linear(hidden, classes, bias=False)
        self.register_buffer("h0", torch.randn(1, hidden) * SPREAD)
        drawn(self)

    def forward(self, letters: Tensor) -> Tensor:
        """From `[batch, time, letters]` to `[batch, classes]`."""
        h = self.h0
        for x in letters.unbind(1):
            h = torch.tanh(self.h(h) + self.x(x))
        y: Tensor = self.y(h)
        return y


class LongShortTerm(nn.Module):
    """An LSTM written out, over random vectors for characters that do not learn, and its readout at each time."""

    embedding: Tensor
    h0: Tensor
    c0: Tensor

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        gates = ("forget", "admit", "candidate", "emit")
        self.gates = nn.ModuleDict({g: nn.Linear(characters + hidden, hidden) for g in gates})
        self.readout = nn.Linear(hidden, characters)
        self.register_buffer("embedding", torch.randn(characters, characters))
        self.register_buffer("h0", torch.randn(1, hidden) * SPREAD)
        self.register_buffer("c0", torch.randn(1, hidden) * SPREAD)
        drawn(self)

    def forward(self, characters: Tensor) -> Tensor:
        """From `[batch, time]` to `[batch, time, characters]`."""
        h, c = (s.expand(characters.shape[0], -1) for s in (self.h0, self.c0))
        outputs = []
        for x in self.embedding[characters].unbind(1):
            z = torch.cat([x, h], 1)
            kept, new = torch.sigmoid(self.gates["forget"](z)) * c, torch.sigmoid(self.gates["admit"](z))
            c = kept + new * torch.tanh(self.gates["candidate"](z))
            h = torch.sigmoid(self.gates["emit"](z)) * torch.tanh(c)
            outputs.append(self.readout(h))
        return torch.stack(outputs, 1)


def drawn(model: nn.Module) -> nn.Module:
    """`model` with its weights drawn anew, and its biases at zero."""
    for p in model.parameters():
        nn.init.normal_(p, std=SPREAD) if p.dim() > 1 else nn.init.zeros_(p)
    return model
