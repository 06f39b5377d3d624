"""Does it need the graph's topology in advance? Units that act in any order; one program for any length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import pccompile
from pccompile.backends.netlist.simulate.asynchronous import Asynchrony


class Tagger(nn.Module):
    """An LSTM over sequences of different lengths, and a readout of each one's last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.readout = nn.LSTM(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """From `[time, batch, 3]`, of which each sequence has its length, to `[batch, 2]`."""
        _, (h, _) = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
        out: Tensor = self.readout(h[-1])
        return out


def relative(mine: Tensor, true: Tensor) -> str:
    """The relative difference of two gradients."""
    gap = float((mine - true).norm() / true.norm())
    return "below 1e-6" if gap < 1e-6 else f"{gap:.0e}"


def out_of_step() -> None:
    """A circuit whose units act in an order drawn anew in each tick, against backpropagation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    (true, *_) = torch.autograd.grad(0.5 * (model(x) - y).pow(2).sum(), list(model.parameters()))
    net = pccompile.compile(model, (x,), backend="netlist", eta=1.0, rate=0.5, ticks=400)
    for name, asynchronous in (("together", None), ("in a random order, half of them", Asynchrony())):
        result = net.simulate(x, y, learn=True, asynchronous=asynchronous, seed=1)
        moved = torch.from_numpy(net.tensors["0.weight"] - result.params["0.weight"])
        print(f"units act {name}: gradient off by {relative(moved, true)}")


def any_length() -> None:
    """One program, called with sequences whose lengths it has not seen."""
    torch.manual_seed(0)
    model = Tagger().double()

    def sequences(*lengths: int) -> tuple[Tensor, Tensor]:
        return torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64), torch.tensor(lengths)

    lengths_free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    pc = pccompile.compile(model, sequences(3, 2), dynamic_shapes=lengths_free, check=False)
    source = pc.source
    for lengths in ((3, 2), (9, 4, 1), (30, 17)):
        x = sequences(*lengths)
        (mine, *_) = torch.autograd.grad(pc(*x).pow(2).sum(), list(model.parameters()))
        (true, *_) = torch.autograd.grad(model(*x).pow(2).sum(), list(model.parameters()))
        same = "the same program" if pc.source is source else "another program"
        print(f"lengths {lengths}: {same}, gradient off by {relative(mine, true)}")


def main() -> None:
    """Both."""
    out_of_step()
    any_length()


if __name__ == "__main__":
    main()
