"""Small models, each with one structural feature that a compiler has to respect."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoo.case import NUMBERS, Case, catalogue, constant, draw, normal, own_loss, squared_error, tokens


class Scalar(nn.Module):
    """The scalar test of arXiv 2006.04182: tan(sqrt(θ v₀)) + sin(v₀²), v₀ read by two children."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(2.0))

    def forward(self, v0: Tensor) -> Tensor:
        return torch.tan(torch.sqrt(self.theta * v0)) + torch.sin(v0**2)


class MLP(nn.Module):
    """Three linear layers with one activation between them."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 9)
        self.fc2 = nn.Linear(9, 7)
        self.fc3 = nn.Linear(7, 4)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        return self.fc3(x)


class Siamese(nn.Module):
    """One encoder applied to two inputs, and their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = self.encoder(left), self.encoder(right)
        return (left - right).pow(2).sum(dim=1).add(1e-3).sqrt()


def contrastive(distance: Tensor, same: Tensor) -> Tensor:
    """Pull pairs with label 1 together, push the others beyond a margin of 1."""
    return torch.where(same == 1, distance**2, F.relu(1 - distance) ** 2).mean()


@dataclass
class Prediction:
    """What `DataclassOutput` returns."""

    mean: Tensor
    spread: Tensor


pytree.register_dataclass(Prediction)


class TwoInputs(nn.Module):
    """An image and a table row in, a dict of two predictions out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 4, 6))
        self.row = nn.Linear(5, 6)
        self.logits = nn.Linear(12, 3)
        self.score = nn.Linear(12, 1)

    def forward(self, image: Tensor, row: Tensor) -> dict[str, Tensor]:
        joint = torch.tanh(torch.cat([self.image(image), self.row(row)], dim=1))
        return {"logits": self.logits(joint), "score": self.score(joint).squeeze(1)}


def class_and_score(output: dict[str, Tensor], label: Tensor) -> Tensor:
    return F.cross_entropy(output["logits"], label) + 0.3 * (output["score"] - label).pow(2).mean()


class DataclassOutput(nn.Module):
    """A mean and a spread, returned as a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.mean = nn.Linear(6, 2)
        self.spread = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Prediction:
        h = torch.tanh(self.body(x))
        return Prediction(mean=self.mean(h), spread=F.softplus(self.spread(h)) + 0.1)


def gaussian(output: Prediction, target: Tensor) -> Tensor:
    """Negative log-likelihood of the target under the predicted normal distribution."""
    return (((target - output.mean) / output.spread) ** 2 / 2 + output.spread.log()).sum()


class UnusedParameter(nn.Module):
    """`spare` takes part in nothing, `dead` in a value that no output reads: both keep `grad is None`."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.spare = nn.Linear(4, 3)
        self.dead = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch.tanh(self.dead(x))
        return torch.tanh(self.used(x))


class Frozen(nn.Module):
    """A frozen layer between two that learn: its input needs the feedback, its weight no update."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.middle = nn.Linear(6, 7).requires_grad_(False)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.middle(x))
        return self.last(x)


class Norms(nn.Module):
    """Group, instance, layer and RMS norm in one chain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 3, padding=1)
        self.group = nn.GroupNorm(2, 6)
        self.conv2 = nn.Conv1d(6, 4, 3, bias=False)  # the norm would cancel a bias
        self.instance = nn.InstanceNorm1d(4, affine=True)
        self.layer = nn.LayerNorm([4, 7])
        self.rms = nn.RMSNorm(7, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.group(self.conv1(x)))
        x = torch.tanh(self.instance(self.conv2(x)))
        return self.rms(torch.sin(2 * self.layer(x)))


class Heads(nn.Module):
    """Three heads on one body, each under a loss of its own; one reads another's output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.classes = nn.Linear(8, 4)
        self.decoder = nn.Linear(8, 6)
        self.value = nn.Linear(8 + 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.elu(self.body(x))
        logits = self.classes(h)
        return logits, self.decoder(h), self.value(torch.cat([h, logits], dim=1))


def three_losses(output: tuple[Tensor, Tensor, Tensor], label: Tensor) -> Tensor:
    logits, decoded, value = output
    smooth = F.smooth_l1_loss(value.squeeze(1), label.to(value.dtype))
    return F.cross_entropy(logits, label) + 0.1 * decoded.pow(2).sum() + smooth


class Operations(nn.Module):
    """Selections and reductions that are not layers: einsum, sort, topk, gather, cumsum, logsumexp and others."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(0.5 * torch.randn(3, 5, 4))
        self.query = nn.Linear(5, 6)
        self.register_buffer("order", torch.tensor([3, 0, 3, 1]))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x)
        best, which = scores.topk(3, dim=1)
        mixed = torch.einsum("bk,kij,bi->bj", best.softmax(1), self.mix, x)
        mixed = mixed.index_select(1, self.order)
        picked = scores.gather(1, which.flip(1))
        ordered, _ = x.sort(dim=1, descending=True)
        clamped = torch.where(ordered > 0.2, ordered.clamp(max=1.0), 0.1 * ordered)
        peak, _ = scores.max(dim=1)
        spread = scores.var(dim=1) + x.norm(dim=1) + scores.logsumexp(1)
        return torch.cat([mixed.cumsum(1), picked, clamped, torch.stack([peak, spread], 1)], dim=1)


class MixtureOfExperts(nn.Module):
    """Experts weighted by a gate that keeps the two best; the experts' weights are stacked in one parameter."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(5, experts)
        self.up = nn.Parameter(torch.randn(experts, 5, 7) / 5**0.5)
        self.down = nn.Parameter(torch.randn(experts, 7, 3) / 7**0.5)

    def forward(self, x: Tensor) -> Tensor:
        best, chosen = self.gate(x).topk(2, dim=-1)
        weight = torch.zeros_like(self.gate(x)).scatter(1, chosen, best.softmax(-1))
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.up))
        return torch.einsum("be,beh,ehj->bj", weight, hidden, self.down)


class GraphNet(nn.Module):
    """Two rounds of messages along edges, summed at their ends by index_add and divided by the degree."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(8, 4)
        self.update = nn.GRUCell(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, end = edges.unbind(1)
        degree = torch.zeros_like(nodes[:, 0]).index_add(0, end, torch.ones_like(end, dtype=nodes.dtype)).clamp(min=1)
        for _ in range(2):
            messages = torch.tanh(self.message(torch.cat([nodes[source], nodes[end]], dim=1)))
            gathered = torch.zeros_like(nodes).index_add(0, end, messages) / degree.unsqueeze(1)
            nodes = self.update(gathered, nodes)
        return self.out(nodes)


class VAE(nn.Module):
    """A variational autoencoder: it samples in forward and returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return F.mse_loss(self.decoder(torch.tanh(z)), x, reduction="sum") + divergence


class Equilibrium(nn.Module):
    """A fixed point by iterating one cell: a tied weight used ten times, unlike paths of length 1 to 10."""

    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.Linear(4, 5)
        self.cell = nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inject(x)
        z = torch.zeros_like(u)
        for _ in range(10):
            z = torch.tanh(u + 0.5 * self.cell(z))
        return z


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "hardswish": nn.Hardswish,
    "selu": nn.SELU,
}

flat = draw(normal(5, 6))

SMALL = catalogue(
    Case("scalar", Scalar, draw(constant(0.7, 0.4)), squared_error, NUMBERS),
    *(Case(f"mlp_{name}", partial(MLP, kind), flat, squared_error, NUMBERS) for name, kind in ACTIVATIONS.items()),
    Case("siamese", Siamese, draw(normal(5, 6), normal(5, 6)), contrastive, tokens(2, 5)),
    Case("dict_output", TwoInputs, draw(normal(3, 2, 5, 6), normal(3, 5)), class_and_score, tokens(3, 3)),
    Case("dataclass_output", DataclassOutput, draw(normal(5, 4)), gaussian, normal(5, 2)),
    Case("unused_parameter", UnusedParameter, draw(normal(5, 4)), squared_error, NUMBERS),
    Case("frozen_parameter", Frozen, draw(normal(4, 5)), squared_error, NUMBERS),
    Case("norms", Norms, draw(normal(2, 3, 9)), squared_error, NUMBERS),
    Case("heads", Heads, flat, three_losses, tokens(4, 5)),
    Case("operations", Operations, draw(normal(7, 5)), squared_error, NUMBERS),
    Case("mixture_of_experts", MixtureOfExperts, draw(normal(6, 5)), squared_error, NUMBERS),
    Case("graph_net", GraphNet, draw(normal(6, 4), tokens(6, 11, 2)), squared_error, NUMBERS),
    Case("vae", VAE, flat, own_loss, NUMBERS, random=True),
    Case("equilibrium", Equilibrium, draw(normal(3, 4)), squared_error, NUMBERS),
)
