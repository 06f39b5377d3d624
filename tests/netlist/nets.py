"""Small circuits that several tests read, and changes to their descriptions."""

import functools
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.backends.netlist.files import plain
from pccompile.backends.netlist.format import Spec
from pccompile.pipeline import compile_netlist


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class Tied(nn.Module):
    """One weight used twice, once transposed, with slices of it besides: dense and sparse projections share it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.w) @ self.w.T + self.w[1] * x


class Ranked(nn.Module):
    """The largest entries, and other numbers at their places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest, places = self.a(x).topk(2, -1)
        return largest * self.b(x).gather(-1, places) - self.a(x).amin(-1, keepdim=True)


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), (1, 2), "squared-error"),
    "cnn": (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(),
                                  nn.Linear(2, 3)), (1, 2, 4, 4), "cross-entropy"),
    "grouped": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3, 2, 2, 2, groups=2), nn.GELU(),
                                      nn.ConvTranspose1d(4, 4, 2, 2, groups=2)), (1, 4, 6), "squared-error"),
    "attention": (Attention, (1, 3, 4), "squared-error"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), (2, 2), "squared-error"),
    "tied": (Tied, (2, 3), "squared-error"),
    "ranked": (Ranked, (2, 3), "squared-error"),
    "dropout": (lambda: nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5), nn.Linear(6, 1)), (1, 2), "none"),
}  # fmt: skip


@functools.cache
def net(name: str) -> Netlist:
    """The circuit of one of NETS."""
    build, shape, loss = NETS[name]
    torch.manual_seed(len(name))
    options = NetlistOptions(loss=loss, rate=0.5)
    return compile_netlist(build().double(), (torch.randn(shape, dtype=torch.float64),), options=options, name=name)


def presented(net: Netlist, replicas: int = 2) -> dict[str, np.ndarray]:
    """Random states of its input populations."""
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal((replicas, *p.shape)) for n, p in net.spec.populations.items() if p.unit == "input"}


def record(net: Netlist) -> dict:
    """The description as JSON has it."""
    return plain(net.spec)


def again(record: dict, net: Netlist, tensors: dict | None = None) -> Netlist:
    """A circuit with another description, and other tensors among its own."""
    return Netlist(msgspec.convert(record, Spec), {**net.tensors, **(tensors or {})}, net.drawn)


def late(name: str) -> Netlist:
    """One of NETS with delays, gains and leaks of all kinds."""
    r = record(net(name))
    for i, p in enumerate(r["projections"]):
        p["delay"] = i % 4
        p["gain"] = -0.5 - i % 3
    for p in r["populations"].values():
        if p["unit"] == "integrator":
            p["leak"] = 0.25
    return again(r, net(name))


def stored(net: Netlist) -> tuple[bytes, bytes]:
    """What is written of a circuit."""
    with tempfile.TemporaryDirectory() as folder:
        description, data = net.save(folder, "m")
        return Path(description).read_bytes(), Path(data).read_bytes()
