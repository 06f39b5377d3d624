"""The netlist as data: populations of units, projections that carry messages, plasticity that changes parameters.

The semantics of each element are those of docs/netlist.md. Everything refers to everything else by name; tensors lie
beside the description, by name too, so that a convolution costs its kernel and not its synapses.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Literal, cast

import msgspec
import numpy as np

VERSION = "1.2"

UnitKind = Literal["input", "sum", "map", "product", "integrator", "select"]
Role = Literal["value", "error", "derivative", "gate", "target", "context"]
Operator = Literal["one_to_one", "gather", "sparse", "dense", "conv", "route", "einsum"]
Rule = Literal["outer", "correlate", "copy", "sparse"]
Dtype = Literal["float64", "float32", "int64", "int32"]

COMBINATIONAL = ("sum", "map", "product", "select")
"""Units whose state follows from their inputs within a tick."""

PORTS: dict[str, tuple[str, ...]] = {"product": ("x", "y"), "input": ()}
"""The ports of each unit kind; every other kind has one, `in`."""


def ports_of(unit: UnitKind) -> tuple[str, ...]:
    """The names of the ports of a unit of that kind."""
    return PORTS.get(unit, ("in",))


class Struct(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A record of the format: unknown fields are refused, default values are not written."""


class Population(Struct, frozen=True, kw_only=True):
    r"""Units of one kind in the shape of a tensor.

        input       state set from outside
        sum         s = Σ in + bias
        map         s = f(Σ in), f an expression in x
        product     s = Σ x · Σ y
        integrator  s ← s + rate (Σ in − leak s), at the end of a tick
        select      s = the winner among the messages of its one `gather`: the largest, or the ranks-th largest

    bias: a parameter of the population's shape, or of one axis of it, `bias_axis`.
    bits: total and fractional bits of the state in fixed point, where they are not the simulation's. port_bits: those
    of the sum at each port of a map or a product, where they are not those of the state. guard: further fractional bits
    of an integrator's accumulator; without, as many as its rate halves. table: log2 of the entries of a map's table and
    log2 of the largest input that it has an entry for.
    """

    shape: tuple[int, ...]
    unit: UnitKind
    role: Role
    vertex: str
    bias: str | None = None
    bias_axis: int | None = None
    function: str | None = None
    leak: float = 1.0
    rate: float = 1.0
    ranks: str | None = None
    smallest: bool = False
    bits: tuple[int, int] | None = None
    port_bits: tuple[tuple[int, int], ...] | None = None
    guard: int | None = None
    table: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """The number of units."""
        return int(np.prod(self.shape, dtype=np.int64))


class Projection(Struct, frozen=True, kw_only=True, rename={"with_": "with"}):
    r"""Messages from the units of `pre` to a port of `post`, "population:port", times `gain`, `delay` ticks late.

        one_to_one  post_i = pre_i
        gather      post_i = Σ_k pre[index_ik], −1 contributes nothing
        sparse      post[index_0s] += w_s pre[index_1s], w_s = param.flat[elements_s] (elements default to 0, 1, 2 …)
        dense       post_ro = Σ_i param_oi pre_ri, rows r are all axes but the last
        conv        the convolution with kernel `param`, without bias
        route       post_i = pre[index_i w_j], w_j the winning slot of unit j = elements_i (i by default) of the
                    select population `by`
        einsum      post_… = Σ pre_… with_…, the product of two populations that `subscripts` say, such as "ij,jk->ik"

    transpose: the adjoint of that map, with the same tensors.
    """

    name: str
    pre: str
    post: str
    op: Operator
    param: str | None = None
    transpose: bool = False
    gain: float = 1.0
    delay: int = 0
    index: str | None = None
    elements: str | None = None
    by: str | None = None
    with_: str | None = None
    subscripts: str | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def target(self) -> str:
        """The population that is reached."""
        return self.post.rpartition(":")[0]

    @property
    def reads(self) -> tuple[str, ...]:
        """The populations whose states are carried."""
        return (self.pre,) if self.with_ is None else (self.pre, self.with_)

    @property
    def port(self) -> str:
        """The port that is reached."""
        return self.post.rpartition(":")[2]


class Plasticity(Struct, frozen=True, kw_only=True):
    r"""A change of a parameter from what is present at its two ends, at each tick of `phase`.

        outer      Δ param_oi = rate Σ_r post_ro pre_ri
        correlate  Δ param = rate × the correlation of post with pre, in the geometry of projection `via`
        copy       Δ param = rate × post, summed over what the parameter is repeated over
        sparse     Δ param.flat[elements_s] += rate post[index_0s] pre[index_1s], index and elements of `via`

    gain: the factor of the projection through which the parameter acts. decay: Δ param −= rate × decay × param besides.
    hebbian: both factors are the states of the populations that the parameter joins, none is a gate between them.
    """

    param: str
    rule: Rule
    post: str
    pre: str | None = None
    via: str | None = None
    axis: int | None = None
    rate: float
    gain: float = 1.0
    decay: float = 0.0
    phase: str = "learn"
    hebbian: bool = True


class Phase(Struct, frozen=True, kw_only=True):
    """A stretch of ticks. Plasticity that names the phase acts at the end of each of its ticks."""

    name: str
    ticks: int


class Tensor(Struct, frozen=True, kw_only=True):
    """What lies in the side file under a name. path: the parameter of the model that it is.

    bits: total and fractional bits in fixed point.
    """

    shape: tuple[int, ...]
    dtype: Dtype
    path: str | None = None
    bits: tuple[int, int] | None = None

    @staticmethod
    def of(array: np.ndarray, path: str | None = None) -> Tensor:
        """What is said of an array."""
        return Tensor(shape=array.shape, dtype=cast(Dtype, str(array.dtype)), path=path)


class Port(Struct, frozen=True, kw_only=True):
    """Where the world meets the circuit: a tensor of `shape`, the states of a population.

    encode: integers become one active unit each, along axis `axis` of the population. example: a tensor that may be
    presented, of random numbers those that were drawn when the circuit was made. states: the axes among which `axis`
    counts, where they are not those of the population. argument: the argument that an input port takes, where that is
    not called like the port.
    """

    population: str
    shape: tuple[int, ...]
    argument: str | None = None
    encode: Literal["one_hot"] | None = None
    axis: int = -1
    example: str | None = None
    states: tuple[int, ...] | None = None


class Fixed(Struct, frozen=True, kw_only=True):
    """An input that is wiring: the circuit holds for this value only. digest: SHA-256 of its entries as int64."""

    shape: tuple[int, ...]
    digest: str


class Semantics(Struct, frozen=True, kw_only=True):
    """How the circuit is to be run."""

    mode: Literal["fixed_prediction"] = "fixed_prediction"
    update: Literal["synchronous"] = "synchronous"


class Spec(Struct, frozen=True, kw_only=True):
    """A whole netlist without its tensors.

    inputs, targets and clamps: what a presentation sets; a clamp is the error of an output, −∂L/∂output.
    draws: context populations that hold random numbers, each set anew for a presentation. arguments: all inputs, those
    that are wiring among them, in the order in which the model takes them. generator: the program that wrote the file.
    """

    format: Literal["pcnetlist"] = "pcnetlist"
    version: str = VERSION
    generator: str | None = None
    name: str
    semantics: Semantics = Semantics()
    phases: tuple[Phase, ...]
    populations: dict[str, Population]
    projections: tuple[Projection, ...]
    plasticity: tuple[Plasticity, ...] = ()
    tensors: dict[str, Tensor] = {}
    inputs: dict[str, Port] = {}
    targets: dict[str, Port] = {}
    clamps: dict[str, Port] = {}
    outputs: dict[str, Port] = {}
    draws: dict[str, Port] = {}
    fixed: dict[str, Fixed] = {}
    arguments: tuple[str, ...] = ()
    tensor_file: str | None = None

    def into(self) -> dict[str, tuple[Projection, ...]]:
        """The projections that reach each population."""
        found: dict[str, list[Projection]] = {name: [] for name in self.populations}
        for p in self.projections:
            found[p.target].append(p)
        return {name: tuple(ps) for name, ps in found.items()}

    def named(self) -> dict[str, Projection]:
        """The projections by name."""
        return {p.name: p for p in self.projections}

    def plastic(self) -> frozenset[str]:
        """The parameters that learn."""
        return frozenset(rule.param for rule in self.plasticity)


Tensors = Mapping[str, np.ndarray]


def order(spec: Spec) -> tuple[str, ...]:
    """The combinational populations, each after those that it reads without delay.

    Raises ValueError with the path of a cycle that crosses neither an integrator nor a delay.
    """
    kinds = {name: p.unit for name, p in spec.populations.items()}
    reads = {
        name: [n for p in ps if not p.delay for n in p.reads if kinds[n] in COMBINATIONAL]
        + [p.by for p in ps if p.by is not None]
        for name, ps in spec.into().items()
        if kinds[name] in COMBINATIONAL
    }
    try:
        return tuple(TopologicalSorter(reads).static_order())
    except CycleError as e:
        raise ValueError(f"a cycle without an integrator or a delay: {' → '.join(reversed(e.args[1]))}") from None
