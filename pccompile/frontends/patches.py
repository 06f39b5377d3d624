"""All that is changed in the whole process while torch.export runs, listed once and put back in the reverse order."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm

from pccompile.frontends.derivatives import noticed_derivatives
from pccompile.frontends.intercept import (
    AuthorGradients,
    author_gradients,
    data_as_detached,
    inference_without_gradient,
)
from pccompile.frontends.packed import Packing, packed_sequences
from pccompile.frontends.process import capturing, replaced
from pccompile.frontends.python_random import refuse_draws
from pccompile.frontends.states import StateTrace
from pccompile.ops.recurrent_operators import OPERATORS
from pccompile.ops.shapes import SHAPES, known_shapes


@contextmanager
def patched(model: nn.Module, trace: StateTrace, packing: Packing) -> Iterator[AuthorGradients]:
    """Within, by one thread at a time, torch.export may trace `model`."""
    with (
        capturing(),
        refuse_draws(model),  # torch.manual_seed, .seed, .set_rng_state and default_generator
        trace.running(),  # fx.Interpreter.run, nn.Module.__getattr__, FakeTensor.tolist
        noticed_derivatives(trace.below) as transforms,  # what autograd.grad, torch.func.grad, jvp and vmap run
        author_gradients() as noticed,  # autograd.Function.apply, Tensor.register_hook and .retain_grad
        whole_recurrences(),  # torch.lstm, .gru, .rnn_tanh and .rnn_relu, and what torch._VF has of them
        packed_sequences(packing),  # the packing functions of torch._VF, torch.as_tensor, forward of LSTM, GRU and RNN
        shapes_torch_lacks(),  # shapes of operators, torch.ctc_loss
        unread_masks(noticed),  # the comparison of masks in nn.Transformer
        visible_statistics(),  # torch.instance_norm, forward of batch normalisation
        inference_without_gradient(),  # torch.inference_mode
        data_as_detached(),  # Tensor.data
        quiet(),  # torch's loggers, warnings, stderr
        unvalidated(),  # Distribution._validate_args, F.gaussian_nll_loss
    ):
        noticed.learning, trace.transforms = trace.below, transforms
        yield noticed


@contextmanager
def quiet() -> Iterator[None]:
    """Within: torch keeps the graphs and tracebacks to itself that it prints and logs where it refuses a model."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    children = [
        logging.getLogger(n) for n in ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    ]
    before = [c.disabled for c in children]
    try:
        for child in children:
            child.disabled = True
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for child, disabled in zip(children, before, strict=True):
            child.disabled = disabled


@contextmanager
def unvalidated() -> Iterator[None]:
    """Within: distributions and the Gaussian loss take what they are given; their checks branch on numbers.

    torch.compile leaves those of distributions out too. The Gaussian loss raises all variances to `eps` in any case.
    """
    loss = F.gaussian_nll_loss

    def unchecked(*args: Any, **kwargs: Any) -> Tensor:
        # the check that no variance is negative is its only use of `any`; and whatever is told of calls of torch
        # functions has to be told what it calls itself, where gradients are off for some lines
        with replaced(torch, any=lambda *_: False), replaced(F, has_torch_function_variadic=lambda *_: False):
            return loss(*args, **kwargs)

    with replaced(Distribution, _validate_args=False), replaced(F, gaussian_nll_loss=unchecked):
        yield


def _ctc_loss(log_probs: Tensor, targets: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """What `aten::_ctc_loss` returns; the second result is as long as the longest target, here as the longest can be.

    Only torch's own kernel for the gradient reads that one.
    """
    steps, count, _ = log_probs.shape
    return log_probs.new_empty(count), log_probs.new_empty(count, steps, 2 * targets.shape[-1] + 1)


@contextmanager
def shapes_torch_lacks() -> Iterator[None]:
    """Within: operators have a shape without a run of their kernels, and the CTC loss takes its lengths as tensors."""
    original = torch.ctc_loss

    def with_tensors(x: Tensor, targets: Tensor, lengths: Any, target_lengths: Any, *rest: Any, **named: Any) -> Tensor:
        return original(x, targets, _tensor(lengths), _tensor(target_lengths), *rest, **named)

    with known_shapes(SHAPES | {"_ctc_loss.Tensor": _ctc_loss}), replaced(torch, ctc_loss=with_tensors):
        yield


def _tensor(lengths: Any) -> Tensor:
    return lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, dtype=torch.long)


@contextmanager
def unread_masks(noticed: AuthorGradients) -> Iterator[None]:
    """Within: nn.TransformerEncoder and nn.TransformerDecoder do not read what is in a mask, unless it learns.

    A mask that is said to be causal takes another kernel; any other is applied as it is, which has the same result. It
    has a gradient then, and that of eager torch depends on what is in it.
    """
    compared = transformer._detect_is_causal_mask

    def declared(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        noticed.learning = noticed.learning or mask is not None
        if mask is not None and mask.requires_grad:
            return compared(mask, is_causal, size)
        return is_causal is True

    with replaced(transformer, _detect_is_causal_mask=declared):
        yield


@contextmanager
def whole_recurrences() -> Iterator[None]:
    """Within: what this thread runs through torch's recurrent functions is recorded as one call of `OPERATORS`."""
    thread = threading.get_ident()

    def whole(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if kwargs or threading.get_ident() != thread or not _plain(args):
                return original(*args, **kwargs)
            input, hx, params, *options = args
            return ours(input, list(hx) if isinstance(hx, tuple) else hx, list(params), *options)

        return run

    with ExitStack() as stack:
        for name, ours in OPERATORS.items():
            for owner in (torch, torch._VF):
                stack.enter_context(replaced(owner, **{name: whole(getattr(owner, name), ours)}))
        yield


def _plain(args: tuple[Any, ...]) -> bool:
    """Whether these are a padded sequence, first states, parameters and options, and not a packed sequence."""
    return len(args) == 9 and isinstance(args[0], FakeTensor) and isinstance(args[3], bool)


@contextmanager
def visible_statistics() -> Iterator[None]:
    """Within: instance normalisation writes its running statistics by operations of their own.

    So does batch normalisation where they are averages over all batches, whose number decides then.
    """
    original, forward = torch.instance_norm, _BatchNorm.forward

    def spelled_out(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        use_input_stats: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        if not use_input_stats:
            return original(x, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn_enabled)
        result = original(x, weight, bias, None, None, True, momentum, eps, cudnn_enabled)
        over, seen = tuple(range(2, x.dim())), x.detach()
        if mean is not None:
            mean.copy_((1 - momentum) * mean + momentum * seen.mean(over).mean(0).to(mean.dtype))
        if variance is not None:
            variance.copy_((1 - momentum) * variance + momentum * seen.var(over).mean(0).to(variance.dtype))
        return result

    def averaging(self: _BatchNorm, x: Tensor) -> Tensor:
        running, variance, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if not self.training or self.momentum is not None or running is None or variance is None or batches is None:
            return forward(self, x)
        self._check_input_dim(x)
        result = F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        over, seen = (0, *range(2, x.dim())), x.detach()
        with torch.no_grad():
            batches.add_(1)
            share = 1 / batches.double()
            running.copy_((1 - share) * running + share * seen.mean(over))
            variance.copy_((1 - share) * variance + share * seen.var(over))
        return result

    with replaced(torch, instance_norm=spelled_out), replaced(_BatchNorm, forward=averaging):
        yield
