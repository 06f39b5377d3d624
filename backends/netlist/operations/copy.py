"""What a bias learns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from pccompile.backends.netlist.operations.base import Change, LearningRule, Source
from pccompile.backends.netlist.operations.synapse_list import Synapses


class Copy(LearningRule):
    """Δ param = rate × post, summed over what the parameter is repeated over."""

    name = "copy"
    has_pre = False

    def problems(self) -> Iterator[str]:
        axis, param, post = self.rule.axis, self.param.shape, self.post
        if axis is None:
            if math.prod(param) != post.size:
                yield f"{post.size} units are copied to {math.prod(param)} entries"
        elif not 0 <= axis < len(post.shape) or param != (post.shape[axis],):
            yield f"axis {axis} of {list(post.shape)} is not copied to {list(param)}"

    def change(self) -> Change:
        axis = self.rule.axis

        def copied(pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
            if axis is None:
                return post.sum(0).reshape(room.shape)
            return post.movedim(axis + 1, -1).reshape(-1, room.shape[0]).sum(0)

        return copied

    def synapses(self) -> Synapses:
        return Synapses(bias_entries(self.post.shape, self.rule.axis), np.arange(self.post.size))

    def most_terms(self) -> int:
        return -(-self.post.size // max(1, self.param.size))

    def products(self) -> int:
        return self.post.size

    def numpy_source(self, e: str, x: str, source: Source) -> str:
        return f"copied({e}, {self.param.shape}, {self.post.shape}, {self.rule.axis!r})"


def bias_entries(shape: Sequence[int], axis: int | None) -> np.ndarray:
    """The entry of its bias that each unit of a population adds."""
    return np.arange(math.prod(shape)) if axis is None else np.indices(tuple(shape))[axis].reshape(-1)
