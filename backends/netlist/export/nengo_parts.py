"""What a generated Nengo script is made of: its source contains those of these functions that it uses.

States of a population are flat here, as in Nengo. Needs Nengo and NumPy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import nengo
import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]
Geometry = tuple[Shape, Shape, Shape, int]  # stride, padding, dilation, groups
DT = 0.001
"""The length of a tick, in seconds: Nengo's own step."""


def computing(label: str, size_in: int, size_out: int, f: Callable[..., Any]) -> Any:
    """A node that computes `f` of what it receives, in the same step."""

    def output(_: float, x: Array) -> Any:
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.ravel(f(x)), size_out)

    return nengo.Node(output, size_in=size_in, size_out=size_out, label=label)


def latching(label: str, source: Any, target: Any, rate: float, leak: float) -> Any:
    """A connection that makes target ← target + rate (source − leak target), at the end of a step."""
    if leak > 0 and 0 < rate * leak < 1:
        synapse = nengo.Lowpass(-DT / math.log1p(-rate * leak))
        return nengo.Connection(source, target, synapse=synapse, transform=1 / leak, label=label)
    synapse = nengo.LinearFilter([rate], [1, rate * leak - 1], analog=False)
    return nengo.Connection(source, target, synapse=synapse, label=label)


def late(ticks: int) -> Any:
    """A synapse that only delays."""
    return nengo.LinearFilter([1], [1, *[0] * ticks], analog=False)


def shown(label: str, states: Array, ticks: int) -> Any:
    """A node that presents the rows of `states` in turn, each for so many ticks."""
    states = states.reshape(len(states), -1)
    if len(states) == 1:
        return nengo.Node(states[0], label=label)
    return nengo.Node(nengo.processes.PresentInput(states, ticks * DT), label=label)


def phase(label: str, first: int, last: int, period: int) -> Any:
    """A node that is 1 from tick `first` to before tick `last` of each period, and else 0."""
    return nengo.Node(lambda t: float(first <= (round(t / DT) - 1) % period < last), label=label)


def parameter(label: str, start: Array) -> tuple[Any, Any, Callable[[Any], Array]]:
    """The node of a parameter that learns, the node that takes its changes, and what reads it from a simulator."""
    value = nengo.Node(size_in=start.size, label=label)
    change = nengo.Node(size_in=start.size, label=f"{label}: change")
    nengo.Connection(nengo.Node(start.ravel(), label=f"{label}: at first"), value, synapse=None)
    learned = latching(f"{label}: learned", change, value, 1.0, 0.0)
    return value, change, lambda sim: start + sim.signals[sim.model.sig[learned]["weighted"]].reshape(start.shape)


class Identity(nengo.neurons.NeuronType):  # type: ignore[misc]  # Nengo has no types
    """A neuron whose output is its input: a unit from which PES can learn."""

    negative = True
    spiking = False

    def gain_bias(self, max_rates: Array, intercepts: Array) -> tuple[Array, Array]:
        """Gain 1 and bias 0."""
        return np.ones(len(max_rates)), np.zeros(len(max_rates))

    def step(self, dt: float, J: Array, output: Array) -> None:
        """Output the input."""
        output[...] = J


def learning(label: str, source: Any, target: Any, weights: Array, error: Any, rate: float, gate: Any) -> Any:
    """Connect by weights that learn by PES, W ← W + rate error ⊗ source, while `gate` is 1; return what reads them.

    PES divides by the number of neurons and multiplies by the length of a step, which its error makes up for.
    """
    size = weights.shape[1]
    relay = nengo.Ensemble(size, 1, neuron_type=Identity(), gain=np.ones(size), bias=np.zeros(size),
                           label=f"{label}: source")  # fmt: skip
    nengo.Connection(source, relay.neurons, synapse=None)
    made = nengo.Connection(relay.neurons, target, transform=nengo.Dense(weights.shape, init=weights), synapse=None,
                            learning_rule_type=nengo.PES(rate, pre_synapse=None), label=label)  # fmt: skip
    rows = weights.shape[0]
    gated = computing(f"{label}: error", rows + 1, rows, lambda z: -size / DT * z[-1] * z[:-1])
    nengo.Connection(error, gated[:-1], synapse=None)
    nengo.Connection(gate, gated[-1], synapse=None)
    nengo.Connection(gated, made.learning_rule, synapse=None)
    return lambda sim: (sim.signals[sim.model.sig[made]["weights"]]
                        + sim.signals[sim.model.sig[made.learning_rule]["delta"]])  # fmt: skip


def pairs(index: Array) -> tuple[Array, Array]:
    """The rows of `index` that have an entry, and the entries; −1 is none."""
    rows, slots = np.nonzero(index >= 0)
    return rows, index[rows, slots]


def repeated(w: Array, rows: int) -> Any:
    """A transform of rows, each by w."""
    at, o, i = np.indices((rows, *w.shape)).reshape(3, -1)
    return sparse(
        (rows * w.shape[0], rows * w.shape[1]), at * w.shape[0] + o, at * w.shape[1] + i, np.tile(w.ravel(), rows)
    )


def sparse(shape: Shape, rows: Array, columns: Array, weights: Any = 1.0) -> Any:
    """A transform with these synapses; several of one pair of units add up."""
    places, inverse = np.unique(rows * shape[1] + columns, return_inverse=True)
    totals = np.bincount(inverse, np.broadcast_to(weights, rows.shape), minlength=len(places))
    return nengo.Sparse(shape, indices=np.stack([places // shape[1], places % shape[1]], 1), init=totals)


def dense(x: Array, w: Array, transpose: bool) -> Array:
    """Rows of x, each through w."""
    w = w if transpose else w.T
    return np.ravel(x.reshape(-1, w.shape[0]) @ w)


def outer(post: Array, pre: Array, shape: Shape) -> Array:
    """Σ post ⊗ pre over rows."""
    return np.ravel(post.reshape(-1, shape[0]).T @ pre.reshape(-1, shape[1]))


def windows(x: Array, kernel: Shape, out: Shape, stride: Shape, dilation: Shape) -> Iterator[tuple[Any, Array]]:
    """For each place in the kernel, the view of padded x that it sees."""
    for place in itertools.product(*map(range, kernel)):
        cuts: list[Any] = [slice(p * d, p * d + s * (n - 1) + 1, s)
                           for p, d, s, n in zip(place, dilation, stride, out, strict=True)]  # fmt: skip
        yield (..., *place), x[(..., *cuts)]


def padded(x: Array, padding: Shape) -> Array:
    """X with zeros around its last axes."""
    return np.pad(x, [(0, 0)] * (x.ndim - len(padding)) + [(p, p) for p in padding])


def conv(x: Array, w: Array, shape: Shape, to: Shape, geometry: Geometry) -> Array:
    """The convolution of x, of shape [samples, channels, …], as shape `to`."""
    stride, padding, dilation, groups = geometry
    rank = len(stride)
    x = padded(x.reshape(-1, groups, shape[-rank - 1] // groups, *shape[-rank:]), padding)
    w = w.reshape(groups, -1, *w.shape[1:])
    y = np.zeros((len(x), groups, w.shape[1], *to[-rank:]))
    for place, seen in windows(x, w.shape[3:], to[-rank:], stride, dilation):
        y += np.einsum("goc,ngc...->ngo...", w[place], seen)
    return y.ravel()


def conv_adjoint(e: Array, w: Array, shape: Shape, to: Shape, geometry: Geometry) -> Array:
    """The adjoint of the convolution, from e of its output's shape to shape `to` of its input."""
    stride, padding, dilation, groups = geometry
    rank = len(stride)
    w = w.reshape(groups, -1, *w.shape[1:])
    e = e.reshape(-1, groups, w.shape[1], *shape[-rank:])
    x = padded(np.zeros((len(e), groups, w.shape[2], *to[-rank:])), padding)
    for place, seen in windows(x, w.shape[3:], shape[-rank:], stride, dilation):
        seen += np.einsum("goc,ngo...->ngc...", w[place], e)
    inside: list[Any] = [slice(p, p + n) for p, n in zip(padding, to[-rank:], strict=True)]
    return x[(..., *inside)].ravel()


def correlate(e: Array, x: Array, kernel: Shape, to: Shape, shape: Shape, geometry: Geometry) -> Array:
    """The correlation of e, of shape `to`, with x, of `shape`: the change of a kernel."""
    stride, padding, dilation, groups = geometry
    rank = len(stride)
    x = padded(x.reshape(-1, groups, shape[-rank - 1] // groups, *shape[-rank:]), padding)
    e = e.reshape(len(x), groups, -1, *to[-rank:])
    found = np.zeros((groups, e.shape[2], *kernel[1:]))
    for place, seen in windows(x, kernel[2:], to[-rank:], stride, dilation):
        found[place] = np.einsum("ngox,ngcx->goc", e.reshape(*e.shape[:3], -1), seen.reshape(*seen.shape[:3], -1))
    return found.ravel()


def copied(post: Array, shape: Shape, of: Shape, axis: int | None) -> Array:
    """Post, of shape `of`, summed over what a bias along `axis` is repeated over."""
    return post if axis is None else np.moveaxis(post.reshape(of), axis, -1).reshape(-1, shape[0]).sum(0)


def scattered(size: int, places: Array, amounts: Array) -> Array:
    """Amounts added up at their places."""
    return np.bincount(places, amounts, minlength=size)


def select(x: Array, index: Array, ranks: Array | None, gain: float, sign: int) -> Array:
    """The winners' states, and then which slot won. Ties go to the slot that comes first."""
    candidates = np.where(index < 0, -np.inf, sign * gain * x[np.maximum(index, 0)])
    if ranks is None:
        slots = candidates.argmax(1)
    else:
        slots = np.argsort(-candidates, 1, kind="stable")[np.arange(len(index)), ranks]
    return np.concatenate([sign * candidates[np.arange(len(index)), slots], slots])


def route(x: Array, winners: Array, index: Array) -> Array:
    """The state of the unit at the winning slot."""
    chosen = index[np.arange(len(index)), winners.astype(int)]
    return np.where(chosen >= 0, x[np.maximum(chosen, 0)], 0)


def route_adjoint(x: Array, winners: Array, index: Array, size: int) -> Array:
    """X sent to the units at the winning slots."""
    chosen = index[np.arange(len(index)), winners.astype(int)]
    return np.bincount(np.maximum(chosen, 0), np.where(chosen >= 0, x, 0), minlength=size)


def piecewise(*branches: tuple[Any, Any]) -> Any:
    """The value of the first branch whose condition holds."""
    value, condition = branches[0]
    if condition is True or len(branches) == 1:
        return value
    return np.where(condition, value, piecewise(*branches[1:]))


def spiking(label: str, size: int, neurons: int, radius: float, f: Any = None) -> tuple[Any, Any]:
    """The decoded output, f of the values or these themselves, and the input of spiking ensembles, one a unit."""
    ensembles = nengo.networks.EnsembleArray(neurons, size, radius=radius, label=label)
    return ensembles.output if f is None else ensembles.add_output("function", f), ensembles.input


def multiplied(label: str, size: int, neurons: int, x: float, y: float) -> tuple[Any, Any, Any]:
    """The decoded product and both inputs, which reach up to x and y, of spiking ensembles, two a unit."""
    product = nengo.networks.Product(2 * neurons, size, input_magnitude=1, label=label)
    first, second, out = (nengo.Node(size_in=size, label=f"{label}{end}") for end in (":x", ":y", ""))
    nengo.Connection(first, product.input_a, transform=1 / x, synapse=None)
    nengo.Connection(second, product.input_b, transform=1 / y, synapse=None)
    nengo.Connection(product.output, out, transform=x * y, synapse=None)
    return out, first, second
