"""Nengo: a netlist as a network of nodes and connections, with the same states step by step, learning included.

A population is a node of its name, a projection a connection of its name; where a connection cannot say it, a node of
the projection's name stands in between. An integrator is Nengo's own synapse, at the rate of the netlist. A parameter
that learns is a node too, whose changes add up in a synapse: what shares it reads the same node. With
`learning="pes"` dense weights learn by Nengo's own rule in connections of neurons, wherever that says the same.

The network is built by a script that is generated; `to_nengo` runs it, `emit` writes it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pccompile.backends.netlist.export import library, refuse, write
from pccompile.backends.netlist.export.nengo_script import Learning, Script
from pccompile.backends.netlist.export.nengo_spiking import Spiking, unheld
from pccompile.backends.netlist.losses import encoded
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.transforms.expand import expand
from pccompile.diagnostics import CompileError, printable
from pccompile.ir.names import identifier


class Nengo:
    """Writes `<name>_nengo.py`, which needs Nengo and NumPy, and `<name>_nengo.npz`."""

    name = "nengo"

    def supports(self, net: Netlist) -> tuple[str, ...]:
        """Nothing is left out."""
        return ()

    def emit(self, net: Netlist, folder: Path, *, name: str = "", **options: Any) -> tuple[Path, ...]:
        """Write the script and its numbers; options are those of `to_nengo`.

        What the script presents, where nothing else is told, is drawn at random.
        """
        presented = not {"inputs", "targets", "clamps"}.isdisjoint(options)
        script = generated(net, **options) if presented else generated(net, drawn=True, **options)
        stem = f"{identifier(name or net.spec.name)}_nengo"
        data = io.BytesIO()
        arrays: dict[str, Any] = {f"tensor/{k}": v for k, v in script.data.items()}
        arrays |= {f"presented/{k}": v for k, v in script.presented.items()}
        np.savez(data, **arrays)
        return write(folder, {f"{stem}.py": script.source().encode(), f"{stem}.npz": data.getvalue()})


def generated(
    net: Netlist,
    inputs: Any = (),
    targets: Any = (),
    *,
    clamps: Any = (),
    draws: Mapping[str, Any] | None = None,
    learning: Learning = "nodes",
    ticks: int | None = None,
    probes: Sequence[str] | None = None,
    spiking: bool = False,
    neurons: int = 100,
    drawn: bool = False,
) -> Script:
    """The script of `net`. See `to_nengo`; drawn: present random numbers where nothing is given."""
    refuse("Nengo", EXPORTER.supports(net))
    if unknown := [n for n in probes or () if n not in net.spec.populations]:
        raise CompileError(f"no population is called {printable(unknown[0])}")
    presented = net.presentation(inputs, targets, clamps, draws)
    if drawn:
        presented = {**random_states(net), **presented}
    if not spiking:
        return Script(net, presented, learning, ticks, probes)
    refuse("Nengo, spiking,", unheld(net))
    return Spiking(expand(net), presented, ticks, probes, neurons)


def random_states(net: Netlist, seed: int = 0) -> dict[str, np.ndarray]:
    """States for all inputs, targets and clamps: normal numbers, and one active unit where integers are presented."""
    rng, spec = np.random.default_rng(seed), net.spec
    found = {}
    for port in (*spec.inputs.values(), *spec.targets.values(), *spec.clamps.values()):
        shape = port.states or spec.populations[port.population].shape
        encode = bool(port.encode)
        value = rng.integers(0, shape[port.axis], port.shape) if encode else rng.standard_normal(port.shape)
        found[port.population] = encoded(port, value, shape)
    return found


def to_nengo(net: Netlist, inputs: Any = (), targets: Any = (), **options: Any) -> Any:
    """A `nengo.Network` of `net`, for simulation with `dt=0.001`, a tick a step.

    inputs, targets, clamps, draws: as for `Netlist.simulate`; several presentations follow each other, each for as many
    ticks as all phases have. learning: "nodes", "pes" or None. ticks: of the settling phase. probes: the populations
    that are probed; by default outputs and errors.

    spiking: ensembles of `neurons` leaky integrate-and-fire neurons stand for each unit but inputs and choices, and
    nothing learns. They hold values as large as those of this presentation; `expected` tells the error of each error
    population, root mean square and relative to its largest unit, that one should expect a second or so later.

    The network has, by name, `units`, `watched`, which are probes, and `parameters`: functions that read a parameter
    from a simulator. A probe sees what other units see in a step: an integrator before it latches. Raises CompileError.
    """
    library("nengo", "pccompile[nengo]")
    script = generated(net, inputs, targets, **options)
    scope: dict[str, Any] = {"__name__": "pccompile_generated"}
    exec(compile(script.source(), f"{identifier(net.spec.name)}_nengo.py", "exec"), scope)
    return scope["build"](script.data, script.presented)


def from_nengo(net: Netlist, network: Any, simulator: Any) -> Netlist:
    """`net` with the parameters that a simulation of its network has learned."""
    read = {name: np.asarray(value(simulator)) for name, value in network.parameters.items()}
    return Netlist(
        net.spec, {**net.tensors, **{k: v.reshape(net.tensors[k].shape) for k, v in read.items()}}, net.drawn
    )


EXPORTER = Nengo()
