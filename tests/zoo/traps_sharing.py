"""Traps of sharing: a parameter or a value that is read more than once, or not at all."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from zoo.case import Case, OneLayer, collect, grid, normal, tokens

SHARING: dict[str, Case] = {}
trap = collect(SHARING)


@trap("tied_weights", tokens(7, 3, 4))
class TiedWeights(nn.Module):
    """One parameter under two names arrives as two placeholders: the gradients must add up under one."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(7, 5)
        self.lm_head = nn.Linear(5, 7, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.wte(words)))


@trap("tied_transposed", normal(3, 4))
class TiedTransposed(OneLayer):
    """An autoencoder whose decoder is the transposed encoder: two unlike contributions to one weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.fc(x)), self.fc.weight.T)


@trap("weight_and_slice", normal(3, 4))
class WeightAndSlice(OneLayer):
    """A parameter and a slice of it are read: the two terms have different shapes and one destination."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)[:, :3] + F.linear(x, self.fc.weight[:3])


@trap("module_called_thrice", normal(3, 4))
class ModuleCalledThrice(OneLayer):
    """A shared layer: its update sums over all calls, each at its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.shared(x))
        return self.fc(x)


@trap("module_under_two_names", normal(3, 4))
class ModuleUnderTwoNames(OneLayer):
    """The same module object under two attribute names: one set of parameters, not two."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * torch.sigmoid(self.twin(2 * x))


@trap("square", normal(3, 4))
class Square(OneLayer):
    """One child reads the value twice: x*x needs two feedback terms."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return h * h


@trap("gram", normal(3, 4))
class Gram(OneLayer):
    """matmul(h, hᵀ): two reads of one value, one of them transposed, across the samples."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return torch.matmul(h, h.T)


@trap("joined_to_itself", normal(3, 4))
class JoinedToItself(OneLayer):
    """cat and stack of one value with itself: k reads, by one child."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return torch.cat([h, h, h], dim=1).cumsum(1)[:, 4:] * torch.stack([h, h], dim=1).sum((1, 2))[:, None]


@trap("three_reads", normal(3, 5))
class ThreeReads(nn.Module):
    """Condition, both branches and the exponent from one value, and a bilinear form in it."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(5, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return self.form(h, h) + torch.where(h > 0, h, h**3).sum(1, keepdim=True) + (h.abs() + 1).pow(h).mean()


@trap("fan_out", normal(3, 4))
class FanOut(OneLayer):
    """Three children of one value: its error is the sum of three terms."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 3)
        self.right = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return torch.sin(self.left(h)) + torch.exp(self.right(h)) + h.sum(1, keepdim=True)


@trap("residual", normal(3, 5))
class Residual(nn.Module):
    """A chain of skips: every value is read by its block and by the sum after it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


@trap("no_child", normal(3, 4))
class NoChild(OneLayer):
    """A value that nothing reads, itself the child of one that is read: no error, no energy."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        torch.exp(h).sum()
        return 2 * h


@trap("unreached_parameter", normal(3, 4))
class UnreachedParameter(OneLayer):
    """Parameters that no output reaches keep `grad is None`: zeros would let weight decay move them."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))
        self.dead = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        self.dead(h)
        return h


@trap("times_zero", normal(3, 4))
class TimesZero(OneLayer):
    """Reached with factor 0: the gradient is zeros and not None, so no simplification may drop it."""

    def __init__(self) -> None:
        super().__init__()
        self.muted = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + 0 * self.muted(x)


@trap("integer_reach", normal(3, 4))
class IntegerReach(OneLayer):
    """`router` reaches the output through integers only: None."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.table = nn.Embedding(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.table(self.router(x).argmax(dim=1))


@trap("partly_frozen", normal(3, 4))
class PartlyFrozen(OneLayer):
    """A frozen weight whose bias learns, under a layer that must still get its feedback."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)
        self.out.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x)))


@trap("scalar_parameters", normal(3, 4))
class ScalarParameters(OneLayer):
    """Parameters of zero dimensions: their feedback is summed over every axis, and one is an exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.power = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.softmax(self.fc(x) / self.temperature, dim=1)
        return h**self.power + torch.exp(self.shift * self.shift)


@trap("only_parameters", normal(3, 4))
class OnlyParameters(OneLayer):
    """A value computed from parameters alone (a normalised weight): it has no batch axis."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc.weight / self.fc.weight.norm(dim=1, keepdim=True)
        return F.linear(x, weight, torch.tanh(self.fc.bias))


@trap("weight_norm", normal(3, 4))
class WeightNorm(nn.Module):
    """A parametrized weight: the parameters are its originals, read through a property."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = weight_norm(nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


@trap("spectral_norm", normal(3, 4))
class SpectralNorm(nn.Module):
    """A power iteration that updates buffers under `no_grad`, once a forward pass, inside a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = spectral_norm(nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


@trap("hypernetwork", normal(3, 4), normal(3, 6))
class HyperNetwork(nn.Module):
    """Weights that are values: a matrix for each sample, made by another network."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(6, 20)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        weight = self.maker(condition).unflatten(1, (5, 4))
        return torch.tanh(torch.einsum("bij,bj->bi", weight, x))


@trap("padding_embedding", tokens(6, 3, 7))
class PaddingEmbedding(nn.Module):
    """Tokens repeat, so rows gather many terms; the padding row takes none although it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4, padding_idx=0)
        nn.init.normal_(self.embedding.weight)

    def forward(self, words: Tensor) -> Tensor:
        return torch.tanh(self.embedding(words)).cumsum(1)


@trap("scaled_embedding", tokens(6, 3, 7))
class ScaledEmbedding(nn.Module):
    """`scale_grad_by_freq`: a backward that is not the derivative of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4, scale_grad_by_freq=True)

    def forward(self, words: Tensor) -> Tensor:
        return torch.tanh(self.embedding(words))


@trap("embedding_bag", tokens(6, 3, 7))
class EmbeddingBag(nn.Module):
    """Embeddings averaged in one kernel with four outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 4, mode="mean")

    def forward(self, words: Tensor) -> Tensor:
        return torch.tanh(self.bag(words))


@trap("learned_initial_state", normal(3, 6, 4))
class LearnedInitialState(nn.Module):
    """The first hidden state is a parameter, expanded over the batch: it learns like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 5)
        self.h_0 = nn.Parameter(0.3 * torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.h_0.expand(x.shape[0], 5)
        for row in x.unbind(1):
            h = self.cell(row, h)
        return h


@trap("duplicate_indices", grid(4, 6), tokens(6, 4, 9))
class DuplicateIndices(nn.Module):
    """gather, index_select, advanced indexing and scatter_add with repeated indices accumulate."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        h = torch.sin(x + self.table.sum(1))
        gathered = h.gather(1, index)
        scattered = torch.zeros_like(h).scatter_add(1, index, gathered**2)
        rows = self.table[index].sum((1, 2)) + self.table.index_select(0, index[0]).sum()
        return scattered + h[:, [0, 0, 3, 3, 3, 1]] + rows.unsqueeze(1)
