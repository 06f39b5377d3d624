"""Each unit to the one at the same place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec
import numpy as np

from pccompile.backends.netlist.format import Operator, Projection
from pccompile.backends.netlist.operations.base import Message, Operation, Source, size
from pccompile.backends.netlist.operations.synapse_list import Synapses


class OneToOne(Operation):
    """post_i = pre_i."""

    name: ClassVar[Operator] = "one_to_one"
    unitwise = True

    def problems(self) -> Iterator[str]:
        if self.pre.size != self.post.size:
            yield f"one_to_one from {self.pre.size} units to {self.post.size}"

    def message(self) -> Message:
        return lambda x, _: self.shaped(x)

    def listed(self) -> Synapses:
        post, pre = self.ends
        return Synapses(np.arange(size(post)), np.arange(size(pre)))

    def count(self) -> int:
        return self.pre.size

    def most_terms(self) -> int:
        return 1

    def sent(self, inside: np.ndarray) -> np.ndarray:
        return inside.reshape(-1).astype(np.int64)

    def adjoint(self, pre: str, post: str, name: str) -> Projection:
        return msgspec.structs.replace(self.p, name=name, pre=pre, post=post, transpose=False)

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        return x

    def nengo_transform(self, source: Source) -> str | None:
        return "" if self.p.gain == 1 else repr(self.p.gain)
