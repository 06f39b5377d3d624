"""All that is changed in the whole process while torch.export runs, listed once and put back in the reverse order."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from torch import nn
from torch.distributions import Distribution

from pccompile.frontends.causal_masks import unread_masks
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
from pccompile.frontends.recurrences import whole_recurrences
from pccompile.frontends.running_statistics import visible_statistics
from pccompile.frontends.shapes import shapes_torch_lacks
from pccompile.frontends.states import StateTrace


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
        unvalidated(),  # Distribution._validate_args
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
    """Within: distributions take their parameters as they are; their checks branch on numbers. torch.compile, too."""
    with replaced(Distribution, _validate_args=False):
        yield
