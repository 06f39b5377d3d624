"""Traps of the interface: what forward returns, and the form of the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import NUMBERS, Case, OneLayer, collect, normal, squared_error, tokens

INTERFACE: dict[str, Case] = {}
trap = collect(INTERFACE)


@trap("output_also_read", normal(3, 4))
class OutputAlsoRead(OneLayer):
    """An output that other vertices read: its error is the loss's plus the feedback of its children."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.fc(x))
        return h, self.out(h)


@trap("output_before_activation", normal(3, 4))
class OutputBeforeActivation(OneLayer):
    """Both sides of an activation are outputs: neither may be fused away."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.fc(x)
        return {"logits": h, "probabilities": torch.softmax(h, dim=1)}


@trap("output_is_input", normal(3, 4))
class OutputIsInput(OneLayer):
    """An input handed through: its error is the loss's own."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.tanh(self.fc(x))


@trap("output_is_parameter", normal(3, 4))
class OutputIsParameter(OneLayer):
    """A parameter among the outputs (a regulariser outside): the loss adds to its update directly."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.fc(x)), self.fc.weight


@trap("output_is_buffer", normal(3, 4))
class OutputIsBuffer(OneLayer):
    """A constant and a buffer among the outputs: no gradient at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tanh(self.fc(x)), self.basis, torch.ones(2, dtype=x.dtype)


@trap("output_twice", normal(3, 4))
class OutputTwice(OneLayer):
    """The same value at two places of the output: two errors, one vertex."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.fc(x))
        return h, h


@trap("output_and_view", normal(3, 4))
class OutputAndView(OneLayer):
    """A value and views of it as outputs: one storage, three errors of different shapes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.fc(x))
        return h, h.T, h[:, 1:3]


@trap("output_detached", normal(3, 4))
class OutputDetached(OneLayer):
    """A detached copy for logging beside the output: the loss on it must not reach `fc`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.fc(x))
        return h, h.detach()


@trap("output_none_and_numbers", normal(3, 4))
class OutputNoneAndNumbers(OneLayer):
    """None, an integer, a float and an integer tensor stand between the outputs."""

    def forward(self, x: Tensor) -> tuple[None, Tensor, int, tuple[float, Tensor, None], Tensor]:
        h = torch.tanh(self.fc(x))
        return None, h, 7, (0.5, h.argmax(dim=1), None), h**2


@trap("output_nested", normal(3, 4))
class OutputNested(OneLayer):
    """Lists, tuples and dicts inside one another, with the dict's keys out of alphabetical order."""

    def forward(self, x: Tensor) -> dict[str, object]:
        h = torch.tanh(self.fc(x))
        return {"z": h, "hidden": [h * 2, (h.sum(), {"b": h.mean(1), "a": h.exp()})], "empty": ()}


@trap("output_scalar", normal(3, 4))
class OutputScalar(OneLayer):
    """An output without dimensions: the error is one number."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)).sum()


@trap("linear_only", normal(3, 4))
class LinearOnly(OneLayer):
    """One layer and nothing hidden: no value to infer, the first prediction is the fixed point."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@trap("no_parameters", normal(3, 4))
class NoParameters(nn.Module):
    """Nothing to learn: only the inputs have gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * x


@trap("unused_input", normal(3, 4), normal(3, 2))
class UnusedInput(OneLayer):
    """An input that nothing reads: its gradient is None."""

    def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


@trap("optional_arguments", normal(3, 4))
class OptionalArguments(OneLayer):
    """Arguments with defaults that the call leaves out."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        h = scale * self.fc(x)
        return torch.tanh(h if mask is None else h * mask)


@trap("awkward_names", normal(3, 4))
class AwkwardNames(nn.Module):
    """Names that are digits, builtins, words of the generated code or that collide once dots become underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"print": nn.Linear(4, 5), "0": nn.Linear(5, 5), "error": nn.Linear(5, 5)})
        self.layers_0 = nn.Linear(5, 5)
        self.input = nn.Linear(5, 5)
        self.torch = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layers["print"](x)) * self.torch
        h = torch.tanh(self.layers["0"](h)) + torch.sin(self.layers_0(h))
        return self.input(torch.tanh(self.layers["error"](h)))


@trap("keyword_name", normal(3, 4))
class KeywordName(nn.Module):
    """A submodule named by a Python keyword: the graph exports, `ExportedProgram.module()` raises a SyntaxError."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"lambda": nn.Linear(4, 5)})

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers["lambda"](x))


def mean_squared(output: Tensor, target: Tensor) -> Tensor:
    """The mean over batch and features: the gradient shrinks with the batch, the energies do not."""
    return F.mse_loss(output, target)


def batch_mean(output: Tensor, target: Tensor) -> Tensor:
    """Summed over the features, averaged over the batch."""
    return (output - target).pow(2).sum(dim=1).mean() / 2


def scaled_loss(output: Tensor, target: Tensor) -> Tensor:
    """As a gradient scaler leaves it: 1024 times too large."""
    return 1024 * squared_error(output, target)


def coupled(output: Tensor, target: Tensor) -> Tensor:
    """A contrastive loss: each sample's error depends on the whole batch."""
    return F.cross_entropy(output @ output.T, target)


class Hidden(OneLayer):
    """Two layers, for losses of several forms: what is mean, sum, scaled or coupled is the loss, not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x)))


trap("loss_sum", normal(6, 4), loss=squared_error, target=NUMBERS)(Hidden)
trap("loss_mean", normal(6, 4), loss=mean_squared, target=normal(6, 3))(Hidden)
trap("loss_batch_mean", normal(6, 4), loss=batch_mean, target=normal(6, 3))(Hidden)
trap("loss_scaled", normal(6, 4), loss=scaled_loss, target=NUMBERS)(Hidden)
trap("loss_coupled", normal(6, 4), loss=coupled, target=tokens(6, 6))(Hidden)
trap("loss_one_sample", normal(1, 4), loss=squared_error, target=NUMBERS, dynamic_batch=False)(Hidden)
trap("loss_large_batch", normal(256, 4), loss=mean_squared, target=normal(256, 3))(Hidden)
