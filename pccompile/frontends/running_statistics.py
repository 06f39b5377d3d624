"""Running statistics that torch's operators write without saying so in their schemas, written where it can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pccompile.frontends.process import replaced


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
