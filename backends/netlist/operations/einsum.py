"""Products of two populations, added up: what attention is made of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.format import Population, Projection
from pccompile.backends.netlist.operations.base import Message, Operation, Shape, Source
from pccompile.backends.netlist.operations.synapse_list import Synapses


class Einsum(Operation):
    """post_… = Σ pre_… with_… over letters that post has not; `subscripts`, "ij,jk->ik", letter the axes of all three.

    Linear in each of the two. A letter stands at most once in a term, and in two terms at least, so that the adjoint,
    of the errors of post and the other operand, is one as well; and a pair of units has at most one synapse.
    """

    name = "einsum"
    needs = ("with_", "subscripts")
    multiplies = True
    unsaid = {"nir": "a product of two populations"}

    @property
    def other(self) -> Population:
        """The second population."""
        return self.populations[str(self.p.with_)]

    @property
    def terms(self) -> tuple[str, str, str]:
        """The letters of pre, of the second population and of post: of the projection, not of the map that it is of."""
        pre, other, post = parts(str(self.p.subscripts))
        return (post, other, pre) if self.p.transpose else (pre, other, post)

    @property
    def lengths(self) -> dict[str, int]:
        """The length of the axes that a letter stands for."""
        pairs = zip(self.terms, (self.pre.shape, self.other.shape, self.post.shape), strict=True)
        return {letter: n for term, shape in pairs for letter, n in zip(term, shape, strict=True)}

    def problems(self) -> Iterator[str]:
        text = str(self.p.subscripts)
        if not re.fullmatch(r"[a-z]*,[a-z]*->[a-z]*", text):
            yield f"subscripts {text[:80]!r} are not letters as in 'ij,jk->ik'"
            return
        once = [c for c in sorted(set(text) - set(",->")) if text.count(c) == 1]
        if any(len(set(term)) < len(term) for term in parts(text)) or once:
            yield f"subscripts {text[:80]} have a letter twice in one term, or in one term only"
            return
        pairs = list(zip(self.terms, (self.pre, self.other, self.post), strict=True))
        if any(len(term) != len(p.shape) for term, p in pairs):
            yield f"subscripts {text[:80]} do not letter the axes of {', '.join(str(list(p.shape)) for _, p in pairs)}"
            return
        for letter in dict.fromkeys(c for term, _ in pairs for c in term):
            found = {n for term, p in pairs for c, n in zip(term, p.shape, strict=True) if c == letter}
            if len(found) > 1:
                yield f"axis {letter} of {text[:80]} has the lengths {', '.join(map(str, sorted(found)))}"

    def message(self) -> Message:
        # Replicas have the letter N, which no axis has.
        equation = "N{},N{}->N{}".format(*self.terms)

        def multiplied(x: Tensor, y: Tensor | None) -> Tensor:
            assert y is not None
            found: Tensor = torch.einsum(equation, x, y)
            return found

        return multiplied

    def listed(self) -> Synapses:
        lengths = self.lengths
        places = dict(zip(lengths, np.indices(tuple(lengths.values()), sparse=True), strict=True))
        pre, other, post = (_flat(term, lengths, places) for term in parts(str(self.p.subscripts)))
        return Synapses(post, pre, other)

    def count(self) -> int:
        return math.prod(self.lengths.values())

    def most_terms(self) -> int:
        return math.prod(n for letter, n in self.lengths.items() if letter not in self.terms[2])

    def sent(self, inside: np.ndarray) -> np.ndarray:
        # Each letter is one of pre or of post: what is summed of post repeats along the letters that only pre has.
        pre, _, post = self.terms
        both = "".join(letter for letter in pre if letter in post)
        summed = np.einsum(f"{post}->{both}", inside.reshape(self.post.shape).astype(np.int64))
        shape = [self.lengths[letter] if letter in both else 1 for letter in pre]
        return np.broadcast_to(summed.reshape(shape), self.pre.shape).reshape(-1)

    @staticmethod
    def readings(p: Projection) -> tuple[Projection, ...]:
        pre, other, post = parts(str(p.subscripts))
        turned = f"{other},{post}->{pre}" if p.transpose else f"{other},{pre}->{post}"
        swapped = msgspec.structs.replace(p, pre=str(p.with_), with_=p.pre, subscripts=turned, transpose=False)
        return p, swapped

    def adjoint(self, pre: str, post: str, name: str) -> Projection:
        back = "{2},{1}->{0}".format(*self.terms)
        return msgspec.structs.replace(self.p, name=name, pre=pre, post=post, subscripts=back, transpose=False)

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        equation = "{},{}->{}".format(*self.terms)
        return f"np.einsum({equation!r}, {x}.reshape({self.pre.shape}), {operand})"


def parts(subscripts: str) -> tuple[str, str, str]:
    """The letters of both operands and of the result."""
    operands, _, result = subscripts.partition("->")
    first, _, second = operands.partition(",")
    return first, second, result


def _flat(term: str, lengths: dict[str, int], places: dict[str, np.ndarray]) -> np.ndarray:
    """The flat number of the unit of a term for each combination of places along all axes."""
    shape: Shape = tuple(lengths[c] for c in term)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    number = sum((places[c] * s for c, s in zip(term, strides, strict=True)), np.zeros((), dtype=np.int64))
    return np.broadcast_to(number, tuple(lengths.values())).reshape(-1)
