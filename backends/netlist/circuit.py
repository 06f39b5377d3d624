"""A netlist while it is being built: units have numbers, and a signal is an array of them.

Wiring (reshape, transpose, slice, concatenate, repeat …) is then done on the numbers themselves and costs nothing: only
where a signal is read does it become a projection.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp

from pccompile.backends.netlist.format import Operator, Plasticity, Population, Projection, Role, Tensor, UnitKind

Ids = np.ndarray
"""Numbers of units, from 1 on, in the shape of the tensor that they stand for; 0 is a constant zero."""

FLOOR = -1e30
"""What stands for −∞, which no unit can hold: exp of it is 0, and a sum of it with anything finite is itself."""


@dataclass
class Circuit:
    """Populations, projections and tensors so far.

    active: the populations that carry an error. unheard: those that send nothing back to what they read.
    formulas: what `map` populations compute, in sympy's symbol x. infinite: the units of infinite constants.
    reserved: the paths of the model's parameters and buffers, which no tensor of the circuit's own is called.
    """

    reserved: frozenset[str] = frozenset()

    populations: dict[str, Population] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)
    plasticity: list[Plasticity] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)
    formulas: dict[str, sp.Expr] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    infinite: list[int] = field(default_factory=list)
    units: int = 0
    _starts: list[int] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _stored: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _projections: set[str] = field(default_factory=set)

    def population(
        self,
        name: str,
        shape: Iterable[int],
        unit: UnitKind,
        role: Role,
        vertex: str,
        active: bool = False,
        **more: Any,
    ) -> str:
        """Add a population; return its name, which is `name` with a number where that is taken."""
        base, count = name, 1
        while name in self.populations:
            count += 1
            name = f"{base}_{count}"
        self.populations[name] = made = Population(
            shape=tuple(map(int, shape)),
            unit=unit,
            role=role,
            vertex=vertex,
            **more,
        )
        self.first[name] = self.units + 1
        self._starts.append(self.units + 1)
        self._names.append(name)
        self.units += made.size
        if active:
            self.active.add(name)
        return name

    def ids(self, name: str) -> Ids:
        """The numbers of all units of a population, in its shape."""
        p = self.populations[name]
        return np.arange(self.first[name], self.first[name] + p.size).reshape(p.shape)

    def sources(self, ids: Ids) -> list[str]:
        """The populations that a signal comes from, in the order in which they were made."""
        used = np.unique(np.searchsorted(self._starts, ids[ids > 0].reshape(-1), side="right") - 1)
        names = [self._names[i] for i in used]
        return [n for n in names if self.populations[n].size]

    def whole(self, ids: Ids) -> str | None:
        """The population all of whose units, in order, a signal is."""
        if not ids.size or ids.flat[0] <= 0:
            return None
        name = self._names[int(np.searchsorted(self._starts, ids.flat[0], side="right")) - 1]
        same = self.populations[name].size == ids.size and self.first[name] == ids.flat[0]
        return name if same and bool((np.diff(ids.reshape(-1)) == 1).all()) else None

    def tensor(self, kind: str, array: np.ndarray) -> str:
        """Store a structural tensor, such as an index or a constant; an equal one is stored once."""
        array = np.ascontiguousarray(array)
        key = (kind, array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).digest())
        if key not in self._stored:
            numbered = (f"#{kind}.{i}" for i in itertools.count(self._counts[kind]))
            self._stored[key] = name = next(n for n in numbered if n not in self.reserved and n not in self.tensors)
            self._counts[kind] += 1
            self.tensors[name] = array
        return self._stored[key]

    def parameter(self, path: str, array: np.ndarray) -> str:
        """Store a parameter or a buffer of the model under its path in it."""
        assert path in self.reserved, path
        self.tensors.setdefault(path, array)
        self.paths.setdefault(path, path)
        return path

    def connect(self, pre: str, post: str, op: Operator, port: str = "in", **more: Any) -> Projection:
        """Add a projection."""
        base = f"{pre}->{post}" + (f":{port}" if port != "in" else "")
        name, count = base, 1
        while name in self._projections:
            count += 1
            name = f"{base}#{count}"
        self._projections.add(name)
        made = Projection(name=name, pre=pre, post=f"{post}:{port}", op=op, **more)
        self.projections.append(made)
        return made

    def project(self, ids: Ids, post: str, port: str = "in", gain: float | np.ndarray = 1.0) -> None:
        """Send a signal to the units of `post`, one each; `gain` may differ from unit to unit."""
        size = self.populations[post].size
        self.collect(ids.reshape(size, 1), post, port, gain)

    def collect(self, ids: Ids, post: str, port: str = "in", gain: float | np.ndarray = 1.0) -> None:
        """Send row i of `ids`, all its units added up, to unit i of `post`."""
        for name in self.sources(ids):
            first, size = self.first[name], self.populations[name].size
            inside = (ids >= first) & (ids < first + size)
            index = np.where(inside, ids - first, -1)
            if isinstance(gain, np.ndarray):
                self._weighted(name, index, post, port, np.broadcast_to(gain.reshape(-1, 1), index.shape))
            elif index.shape == (size, 1) and bool((index[:, 0] == np.arange(size)).all()):
                self.connect(name, post, "one_to_one", port, gain=float(gain))
            else:
                index = self.packed(index)
                self.connect(name, post, "gather", port, gain=float(gain), index=self.tensor("index", index))

    @staticmethod
    def packed(index: np.ndarray) -> np.ndarray:
        """`index` with the empty slots of each row at its end, and no column empty."""
        behind = np.argsort(index < 0, axis=1, kind="stable")
        index = np.take_along_axis(index, behind, 1)
        return index[:, : max(1, int((index >= 0).sum(1).max(initial=0)))]

    def _weighted(self, pre: str, index: np.ndarray, post: str, port: str, gain: np.ndarray) -> None:
        rows, slots = np.nonzero((index >= 0) & (gain != 0))
        if rows.size:
            pairs = np.stack([rows, index[rows, slots]])
            self.scatter(pre, pairs, gain[rows, slots], post, port)

    def scatter(self, pre: str, pairs: np.ndarray, weights: np.ndarray, post: str, port: str = "in") -> None:
        """Add synapses of constant weight: pairs[0] are units of `post`, pairs[1] units of `pre`."""
        index = self.tensor("index", pairs.astype(np.int64))
        self.connect(pre, post, "sparse", port, index=index, param=self.tensor("weights", finite(weights)))

    def constant(self, array: np.ndarray, vertex: str) -> Ids:
        """A signal of fixed numbers: a unit for each distinct one, none for zero."""
        array = np.asarray(array, dtype=np.float64)
        values, inverse = np.unique(finite(array), return_inverse=True)
        ids = np.zeros(len(values), dtype=np.int64)
        used = np.nonzero(values)[0]
        if used.size:
            bias = self.tensor("const", values[used])
            name = self.population(f"{vertex}.const", (used.size,), "sum", "context", vertex, bias=bias)
            ids[used] = self.ids(name)
            self.infinite += [i for i, v in zip(ids.tolist(), values.tolist(), strict=True) if abs(v) >= -FLOOR]
        return ids[inverse].reshape(array.shape)

    def carries(self, ids: Ids) -> bool:
        """Whether a signal comes from a population that carries an error."""
        return any(s in self.active for s in self.sources(ids))

    def described(self) -> dict[str, Tensor]:
        """What the format says of each tensor."""
        return {name: Tensor.of(array, self.paths.get(name)) for name, array in self.tensors.items()}


def finite(array: np.ndarray) -> np.ndarray:
    """`array` in float64, its infinities brought into what a unit can hold."""
    return np.clip(np.asarray(array, dtype=np.float64), FLOOR, -FLOOR)


def grouped(destination: np.ndarray, ids: Ids, size: int) -> Ids:
    """For each of `size` units, the entries of `ids` whose destination it is."""
    rows: list[list[int]] = [[] for _ in range(size)]
    for d, i in zip(destination.reshape(-1).tolist(), ids.reshape(-1).tolist(), strict=True):
        rows[d].append(i)
    width = max([1, *map(len, rows)])
    return np.array([r + [0] * (width - len(r)) for r in rows], dtype=np.int64).reshape(size, width)
