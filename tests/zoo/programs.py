"""Programs that Python decides or that differentiate within forward: what a capture of one graph does not hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """A model and its calls. build: the model, in float64 after `.double()`; call: arguments drawn at a scale."""

    name: str
    build: Callable[[], nn.Module]
    call: Callable[[Generator, float], Call]
    slow: bool = False


PROGRAMS: dict[str, Program] = {}


def program(name: str, call: Callable[[Generator, float], Call], slow: bool = False) -> Any:
    """A decorator that enters a module into the table."""

    def enter(module: type[nn.Module]) -> type[nn.Module]:
        if name in PROGRAMS:
            raise ValueError(f"two programs are called {name}")
        PROGRAMS[name] = Program(name, module, call, slow)
        return module

    return enter


def normal(*shape: int) -> Callable[[Generator, float], Call]:
    """One tensor of normal numbers, of a scale."""
    return lambda g, scale: ((scale * torch.randn(shape, generator=g, dtype=torch.float64),), {})


class Layers(nn.Module):
    """A few layers of four to five units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


# branches, loops, numbers


@program("if_on_a_sum", normal(5, 3))
class IfOnASum(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.sum() > 0:
            h = self.second(h).tanh()
        return self.last(h)


@program("branches_within_branches", normal(5, 3))
class BranchesWithinBranches(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.norm() > 2:
            h = self.second(h).sin() if bool(h.mean() > 0) else self.experts[0](h)
        elif h[0, 0] < 0:
            h = -h
        return self.last(h)


@program("while_on_a_norm", normal(5, 3))
class WhileOnANorm(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        while h.norm() > 1.0:
            h = 0.5 * self.second(h).tanh() * h.detach().norm().clamp(max=1.5)
        return self.last(h)


@program("while_with_a_counter", normal(5, 3))
class WhileWithACounter(Layers):
    """A loop until convergence, or ten rounds."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        h, rounds = self.first(x), 0
        while rounds < 10 and h.abs().max() > 0.5:
            h, rounds = 0.7 * self.second(h).tanh(), rounds + 1
        return self.last(h), rounds


@program("loop_by_item", normal(5, 3))
class LoopByItem(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(int(x.abs().sum().item()) % 4 + 1):
            h = self.second(h).tanh()
        return self.last(h)


@program("scaled_by_item", normal(5, 3))
class ScaledByItem(Layers):
    """Numbers that are read, calculated with in Python and put back."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scale = 1.0 / (1.0 + h.abs().max().item() ** 2)
        return self.last(h.tanh()) * scale + float(x.mean())


@program("branch_by_item", normal(5, 3))
class BranchByItem(Layers):
    """A number that both scales and decides."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scale = h[0, 0].item()
        return self.last(h.tanh() if scale > 0 else h.sin()) * scale


@program("lengths_by_tolist", normal(5, 3))
class LengthsByToList(Layers):
    """Rows are gathered by lists of numbers."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        kept = [row[: n + 1].sum() for row, n in zip(h, h.argmax(-1).tolist(), strict=True)]
        return self.last(h) * torch.stack(kept)[:, None]


@program("early_exit", normal(5, 3))
class EarlyExit(Layers):
    """Each block has a head; the first confident one answers."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for expert in self.experts:
            h = h + expert(h).tanh()
            answer = self.last(h)
            if answer.softmax(-1).max() > 0.9:
                return answer
        return answer + self.second(h)[:, :2]


@program("exit_by_row", normal(5, 3))
class ExitByRow(Layers):
    """Rows leave one after the other, until there is none."""

    def forward(self, x: Tensor) -> Tensor:
        h, left = self.first(x), torch.arange(x.shape[0])
        for _ in range(4):
            new = self.second(h[left]).tanh() + h[left]
            h = h.index_copy(0, left, new)
            left = left[new.detach().norm(dim=-1) < 3.0]
            if left.numel() == 0:
                break
        return self.last(h)


@program("mixture_of_experts", normal(6, 3))
class MixtureOfExperts(Layers):
    """Rows are routed by their scores; experts without a row do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        weight, chosen = self.gate(h).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            row, slot = torch.nonzero(chosen == i, as_tuple=True)
            if row.numel() == 0:
                continue
            out = out.index_add(0, row, weight[row, slot, None] * expert(h[row]).relu())
        return self.last(out)


@program("mixture_in_place", normal(6, 3))
class MixtureInPlace(MixtureOfExperts):
    """As in Mixtral: a mask of the experts, those that are hit, and `index_add_`."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        weight, chosen = self.gate(h).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(h)
        mask = F.one_hot(chosen, num_classes=3).permute(2, 1, 0)
        for i in (mask.sum(dim=(-1, -2)) > 0).nonzero():
            slot, row = torch.where(mask[i].squeeze(0))
            out.index_add_(0, row, self.experts[int(i)](h[None, row].reshape(-1, 4)) * weight[row, slot, None])
        return self.last(out)


@program("beam", normal(2, 3))
class Beam(Layers):
    """The two best of all continuations for some steps, until one ends."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        beams, step = [(h.new_zeros(()), h)], 0
        while step < 3:
            grown = []
            for score, state in beams:
                state = self.second(state).tanh()
                best = self.last(state).mean(0).log_softmax(-1).topk(2)
                for value, token in zip(best.values, best.indices.tolist(), strict=True):
                    grown.append((score + value, state + 0.1 * token))
            beams = sorted(grown, key=lambda b: -b[0].item())[:2]
            step += 1
            if beams[0][1].detach().abs().max() > 1.2:
                break
        return torch.stack([s * h.sum() for s, h in beams])


@program("layer_drop", normal(5, 3))
class LayerDrop(Layers):
    """Layers are left out by numbers of Python's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for expert in self.experts:
            if random.random() < 0.4:
                continue
            h = h + expert(h).tanh()
        return self.last(h)


@program("layer_drop_by_torch", normal(5, 3))
class LayerDropByTorch(Layers):
    """Layers are left out by a number of torch's generator (as in wav2vec2)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for expert in self.experts:
            if torch.rand([]) > 0.4:
                h = h + expert(h).tanh()
        return self.last(h)


# solvers


@program("equilibrium_with_a_hook", normal(5, 3))
class EquilibriumWithAHook(Layers):
    """A deep equilibrium model: its gradient is a fixed point too, by a hook on the value."""

    def solve(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        for _ in range(80):
            new = f(z)
            if (new - z).norm() < 1e-12:
                break
            z = new
        return new

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.no_grad():
            z = self.solve(lambda z: (0.3 * self.second(z) + h).tanh(), torch.zeros_like(h))
        z = (0.3 * self.second(z) + h).tanh()
        if z.requires_grad:
            z0 = z.clone().detach().requires_grad_()
            f0 = (0.3 * self.second(z0) + h).tanh()

            def backward_hook(grad: Tensor) -> Tensor:
                return self.solve(lambda g: torch.autograd.grad(f0, z0, g, retain_graph=True)[0] + grad, grad)

            z.register_hook(backward_hook)
        return self.last(z)


@program("equilibrium_by_function", normal(5, 3))
class EquilibriumUnrolled(Layers):
    """A deep equilibrium model through whose iterations autograd runs."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z = torch.zeros_like(h)
        for _ in range(50):
            new = (0.3 * self.second(z) + h).tanh()
            close = torch.allclose(new, z, atol=1e-6)
            z = new
            if close:
                break
        return self.last(z)


@program("adaptive_solver", normal(5, 3))
class AdaptiveSolver(Layers):
    """Heun and Euler: a step is taken where they agree; else it is halved. Steps are Python floats."""

    def field(self, t: float, y: Tensor) -> Tensor:
        return self.second(y).tanh() * (1 + 0.1 * t)

    def forward(self, x: Tensor) -> Tensor:
        y, t, step = self.first(x), 0.0, 0.5
        while t < 1.0:
            step = min(step, 1.0 - t)
            k1 = self.field(t, y)
            k2 = self.field(t + step, y + step * k1)
            error = (step * (k2 - k1) / 2).abs().max().item()
            if error > 0.05:
                step /= 2
                continue
            y, t = y + step * (k1 + k2) / 2, t + step
            if error < 0.01:
                step *= 2
        return self.last(y)


@program("adaptive_solver_by_factor", normal(5, 3))
class AdaptiveSolverByFactor(Layers):
    """As torchdiffeq: the next step is a tensor, by a power of the error; gradients pass through it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        t, step = x.new_zeros(()), x.new_full((), 0.5)
        while t < 1.0:
            step = torch.minimum(step, 1.0 - t)
            k1 = self.second(y).tanh()
            k2 = self.second(y + step * k1).tanh()
            ratio = (step * (k2 - k1) / 2).square().mean().sqrt() / 1e-2
            factor = (0.9 * ratio.clamp(min=1e-8) ** -0.5).clamp(0.2, 5.0)
            if ratio <= 1:
                y, t = y + step * (k1 + k2) / 2, t + step
            step = step * factor
        return self.last(y)


# recurrent


def sequences(g: Generator, scale: float) -> Call:
    lengths = torch.tensor([4, 2, 3]) if scale > 1.5 else torch.tensor([2, 4, 1])
    return (scale * torch.randn((3, 4, 3), generator=g, dtype=torch.float64), lengths), {}


@program("packed_sequences", sequences)
class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h, _) = self.rnn(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        return self.head(out), h


@program("packed_to_the_longest", sequences)
class PackedToTheLongest(nn.Module):
    """Padded to the longest of the batch, with lengths as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.tolist(), batch_first=True, enforce_sorted=False)
        out, given = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out).sum(1) / given[:, None]
