"""What an operation of projections is: everything that simulators, passes, placements and exporters ask of one.

A subclass is an operation, an instance is that operation at work in one projection. A `LearningRule` is the same for a
rule of plasticity. Both know the populations and tensors of their circuit, and nothing of who asks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.format import Operator, Plasticity, Population, Projection, Rule, Tensors
from pccompile.backends.netlist.operations.synapse_list import Synapses

Shape = tuple[int, ...]
Populations = Mapping[str, Population]

Message = Callable[[Tensor, Tensor | None], Tensor]
"""From states of `pre` and the second operand to what arrives, gain left out; states are [replicas, *shape].

The second operand is what else a message is made of: the parameter, the states of `with`, or the winners of `by`.
"""

Change = Callable[[Tensor | None, Tensor, Tensor], Tensor]
"""From the states of pre and post to the sum of products for each entry of a parameter; its room may be used."""

Source = Callable[[str | None], str]
"""From the name of a tensor to the source text that reads it in a generated script."""


@dataclass(frozen=True)
class Operation(ABC):
    """An operation at work in projection `p`. `ends` are those of the map itself, also where `p` is its adjoint.

    needs, may: the fields of a projection that it must and may have. rule: how its parameter learns. unitwise: unit i
    is sent to unit i, which is its own adjoint. gathers: each row of its table lists what a unit reads, and a select
    population can compare it. matrix: rows of units go through one matrix. kernel: places share a kernel. multiplies:
    messages are products of states. unsaid: why an exporter, by its name, cannot write it.
    """

    p: Projection
    populations: Populations
    tensors: Tensors

    name: ClassVar[Operator]
    needs: ClassVar[tuple[str, ...]] = ()
    may: ClassVar[tuple[str, ...]] = ()
    rule: ClassVar[Rule | None] = None
    unitwise: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    matrix: ClassVar[bool] = False
    kernel: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False
    unsaid: ClassVar[Mapping[str, str]] = {}

    @property
    def pre(self) -> Population:
        """The population that is read."""
        return self.populations[self.p.pre]

    @property
    def post(self) -> Population:
        """The population that is reached."""
        return self.populations[self.p.target]

    @property
    def ends(self) -> tuple[Shape, Shape]:
        """The shapes of post and pre of the map itself."""
        return (self.pre.shape, self.post.shape) if self.p.transpose else (self.post.shape, self.pre.shape)

    @property
    def param(self) -> np.ndarray:
        """The parameter."""
        return self.tensors[str(self.p.param)]

    @property
    def index(self) -> np.ndarray:
        """The table."""
        return self.tensors[str(self.p.index)]

    @property
    def elements(self) -> np.ndarray | None:
        """The table of entries, or of deciding units."""
        return None if self.p.elements is None else self.tensors[self.p.elements]

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """What does not fit; the fields that it needs are there, and are tensors of the right kind."""

    @abstractmethod
    def message(self) -> Message:
        """What it does to states. Linear, so that it also holds for whole numbers in float64, exact below 2⁵³."""

    @abstractmethod
    def listed(self) -> Synapses:
        """The synapses of the map itself, also where the projection is its adjoint."""

    def synapses(self) -> Synapses:
        """The synapses of the projection, of a choice all those that it chooses from."""
        found = self.listed()
        return replace(found, post=found.pre, pre=found.post) if self.p.transpose else found

    @abstractmethod
    def count(self) -> int:
        """How many synapses there are, at most: those beyond the edge of a convolution are counted too."""

    def fan_in(self) -> np.ndarray:
        """The number of synapses on each unit of post; a route has one for each slot."""
        p = self.p
        turned = msgspec.structs.replace(p, pre=p.target, post=f"{p.pre}:in", transpose=not p.transpose)
        return replace(self, p=turned).sent(np.ones(self.pre.shape, dtype=bool))

    @abstractmethod
    def most_terms(self) -> int:
        """The most terms that are added up for one unit."""

    @abstractmethod
    def sent(self, inside: np.ndarray) -> np.ndarray:
        """For each unit of pre, the synapses to those units of post that are `inside`, a mask in their shape."""

    def chosen_by(self, inside: np.ndarray) -> np.ndarray:
        """For each unit of the select population `by`, the units `inside`, as for `sent`, whose messages it chooses."""
        return np.zeros(0, dtype=np.int64)

    def first_read(self) -> tuple[np.ndarray, int] | None:
        """For each unit of post the first unit of pre that it reads, and the size of the table that says so, if any."""
        return None

    def channels(self, inside: np.ndarray) -> np.ndarray | None:
        """The channels of post that have units `inside`; None without a kernel."""
        return None

    def stored(self, where: np.ndarray, count: int) -> np.ndarray | None:
        """Which entries of the parameter each core needs, `[count, *param]`; where: the cores of the units of post."""
        return None

    def is_single_synapses(self) -> bool:
        """Whether its tables name a unit, and an entry of a parameter, for each synapse already."""
        return False

    def divided(self, parts: np.ndarray, owners: np.ndarray) -> dict[str, np.ndarray] | None:
        """The tables with which it reaches partial sums; None where single synapses do.

        Synapse s then is on unit parts[s], which adds up for unit owners[parts[s]] of post.
        """
        return None

    @staticmethod
    def readings(p: Projection) -> tuple[Projection, ...]:
        """The projection as it is seen from each population whose states it carries, that being `pre`."""
        return (p,)

    def adjoint(self, pre: str, post: str, name: str) -> Projection:
        """The projection from errors `pre` of post back to `post`, "population:port"."""
        return msgspec.structs.replace(self.p, name=name, pre=pre, post=post, transpose=not self.p.transpose)

    @abstractmethod
    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        """What it does to flat states x, as an expression of the functions in `export/nengo_parts.py`."""

    def nengo_transform(self, source: Source) -> str | None:
        """The transform of a connection in Nengo; "" for none, None where Nengo has no such transform."""
        return None

    def scale(self) -> str:
        """The source of a factor before it, the gain."""
        return "" if self.p.gain == 1 else f"{self.p.gain!r} * "

    def shaped(self, x: Tensor) -> Tensor:
        """What arrives, in the shape of post."""
        return x.reshape(x.shape[0], *self.post.shape)


@dataclass(frozen=True)
class LearningRule(ABC):
    """A rule of plasticity at work between its populations; via: the projection that gives the geometry.

    operation: the operation whose parameters it changes, None for biases. has_pre: it reads states of pre. takes_via:
    it needs a projection for its geometry.
    """

    rule: Plasticity
    populations: Populations
    via: Projection | None
    tensors: Tensors

    name: ClassVar[Rule]
    operation: ClassVar[Operator | None] = None
    has_pre: ClassVar[bool] = True
    takes_via: ClassVar[bool] = False

    @property
    def pre(self) -> Population:
        """The population of the presynaptic factor."""
        return self.populations[str(self.rule.pre)]

    @property
    def post(self) -> Population:
        """The population of the postsynaptic factor."""
        return self.populations[self.rule.post]

    @property
    def param(self) -> np.ndarray:
        """The parameter."""
        return self.tensors[self.rule.param]

    @property
    def wiring(self) -> Projection:
        """The projection that gives the geometry."""
        assert self.via is not None
        return self.via

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """What does not fit together."""

    @abstractmethod
    def change(self) -> Change:
        """What it adds up, over replicas too, rate and gain left out."""

    @abstractmethod
    def synapses(self) -> Synapses:
        """What it adds up for each entry of its parameter: units of its post times units of its pre."""

    def most_terms(self) -> int:
        """The most products that it adds up for one entry and one replica."""
        return -(-self.post.size // max(1, int(self.param.shape[0])))

    @abstractmethod
    def products(self) -> int:
        """The products of pre and post, or states of post, that it adds up in a tick."""

    @abstractmethod
    def numpy_source(self, e: str, x: str, source: Source) -> str:
        """What it adds, rate left out, from flat states e of post and x of pre."""


def flat(x: Tensor) -> Tensor:
    """The units of each replica in one axis."""
    return x.reshape(len(x), -1)


def most(units: np.ndarray) -> int:
    """How often the most frequent unit occurs."""
    return int(np.bincount(units.reshape(-1).astype(np.int64)).max(initial=0)) if units.size else 0


def wide(table: np.ndarray) -> Tensor:
    """A table as torch indexes with it."""
    return torch.from_numpy(table.astype("int64"))


def out_of_range(what: str, index: np.ndarray, low: int, size: int) -> Iterator[str]:
    """What is wrong with a table of units or entries."""
    if index.size and (index.min() < low or index.max() >= size):
        yield f"{what} goes from {index.min()} to {index.max()}, units and entries from 0 to {size - 1}"


def size(shape: Shape) -> int:
    """The number of units of a shape."""
    return int(math.prod(shape))
