"""A netlist with its tensors, and what can be done with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pccompile.backends.netlist.format import Spec
from pccompile.backends.netlist.losses import encoded
from pccompile.backends.netlist.shown import populations_html, title
from pccompile.backends.netlist.simulate.synchronous import Simulator, Watch, refuse_undefined
from pccompile.diagnostics import CompileError

if TYPE_CHECKING:
    from pccompile.backends.netlist.chip import Chip
    from pccompile.backends.netlist.placement import Placement
    from pccompile.backends.netlist.resources import Resources
    from pccompile.backends.netlist.session import Session
    from pccompile.backends.netlist.simulate.asynchronous import Asynchrony
    from pccompile.backends.netlist.simulate.fixed import Rounding


@dataclass(frozen=True)
class Result:
    """What a simulation leaves: states of every population `[replicas, *shape]`, and the parameters.

    saturations: see `Session.saturations`.
    """

    states: Mapping[str, np.ndarray]
    params: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    traces: Mapping[str, np.ndarray]
    saturations: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Netlist:
    """A circuit: its description and its tensors by name. `drawn` are examples of its random numbers."""

    spec: Spec
    tensors: Mapping[str, np.ndarray]
    drawn: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return title(self.spec)

    def _repr_html_(self) -> str:
        return populations_html(self.spec)

    def presentation(
        self,
        inputs: Any = (),
        targets: Any = (),
        clamps: Any = (),
        draws: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """The states of input populations, `[replicas, *shape]`, for tensors in the model's order or by name.

        Random numbers are those of `drawn` where they are not given. Raises CompileError for what does not fit.
        """
        spec = self.spec
        named = _named("input", inputs, spec.arguments)
        for name, fixed in spec.fixed.items():
            if name in named:
                entries = np.ascontiguousarray(named[name].astype(np.int64))
                if hashlib.sha256(entries.tobytes()).hexdigest() != fixed.digest:
                    raise CompileError(f"input {name} is wiring of this circuit, and was given another value",
                                       hint="compile the model with this value")  # fmt: skip
        given = {"input": named, "target": _named("target", targets, tuple(spec.targets)),
                 "clamp": _named("clamp", clamps, tuple(spec.clamps)),
                 "draw": {**self.drawn, **_named("draw", draws or {}, tuple(spec.draws))}}  # fmt: skip
        found: dict[str, np.ndarray] = {}
        for kind, ports in (
            ("input", spec.inputs),
            ("target", spec.targets),
            ("clamp", spec.clamps),
            ("draw", spec.draws),
        ):
            for name, port in ports.items():
                value = given[kind].get(name if port.argument is None else port.argument)
                if value is None:
                    continue
                refuse_undefined(f"{kind} {name}", value)
                try:
                    found[port.population] = encoded(
                        port, value, port.states or spec.populations[port.population].shape
                    )
                except ValueError as e:
                    raise CompileError(f"{kind} {name}: {e}") from e
                if not len(found[port.population]):
                    raise CompileError(f"{kind} {name}: shape {list(value.shape)} holds no presentation")
        return found

    @property
    def quantised(self) -> bool:
        """Whether the netlist names formats of fixed point."""
        spec = self.spec
        return any(p.bits for p in spec.populations.values()) or any(t.bits for t in spec.tensors.values())

    def session(self, replicas: int = 1, **options: Any) -> Session:
        """The netlist running, for presentations one after another; the options are those of `Session`."""
        from pccompile.backends.netlist.session import Session

        return Session(self, replicas, **options)

    def simulator(self, presentation: Mapping[str, np.ndarray]) -> Simulator:
        """A simulator with the input populations set, a replica for each presentation."""
        session = self.session(max((len(v) for v in presentation.values()), default=1))
        session.set(presentation)
        return session.simulator

    def simulate(
        self,
        inputs: Any = (),
        targets: Any = (),
        *,
        clamps: Any = (),
        draws: Mapping[str, Any] | None = None,
        ticks: int | None = None,
        learn: bool = False,
        trace: Sequence[str] = (),
        watch: Watch | None = None,
        progress: bool = False,
        bits: tuple[int, int] | None = None,
        rounding: Rounding = "nearest",
        asynchronous: Asynchrony | None = None,
        seed: int = 0,
    ) -> Result:
        """Present tensors, settle for `ticks` and, if `learn`, change the parameters in one more tick.

        inputs, targets, clamps: one tensor, a sequence in the model's order, or a mapping by name; a leading axis more
        than the port has is that of replicas. bits: of weights and of states, `quantise` with this presentation first.
        trace, watch, progress: see `Session.run`; rounding, asynchronous, seed: see `Session`. Raises CompileError.
        """
        presentation = self.presentation(inputs, targets, clamps, draws)
        net = self if bits is None else self.quantise(*bits, presentations=[presentation])
        replicas = max((len(v) for v in presentation.values()), default=1)
        session = net.session(replicas, asynchronous=asynchronous, rounding=rounding, seed=seed)
        session.set(presentation)
        traces = session.run(ticks, learn=learn, trace=trace, watch=watch, progress=progress)
        return Result(session.states, session.params, session.outputs, traces, session.saturations)

    def quantise(self, weight_bits: int = 8, state_bits: int = 16, **options: Any) -> Netlist:
        """The netlist in fixed point; the options are those of `transforms.quantise`."""
        from pccompile.backends.netlist.transforms.quantise import quantise

        return quantise(self, weight_bits, state_bits, **options)

    def to_nengo(self, inputs: Any = (), targets: Any = (), **options: Any) -> Any:
        """A `nengo.Network`; see `export.nengo.to_nengo`."""
        from pccompile.backends.netlist.export.nengo import to_nengo

        return to_nengo(self, inputs, targets, **options)

    def to_nir(self, strict: bool = True) -> Any:
        """A `nir.NIRGraph`; see `export.nir.to_nir`."""
        from pccompile.backends.netlist.export.nir import to_nir

        return to_nir(self, strict)

    def place(self, chip: str | Path | Chip, split: bool = True) -> Placement:
        """The circuit on a chip, by name or by a YAML file, all limits verified. Raises CompileError."""
        from pccompile.backends.netlist.placement import place

        return place(self, chip, split)

    def resources(self, chip: str | Path | Chip | None = None) -> Resources:
        """What the circuit costs, placed on a chip where one is given. Raises CompileError where it does not fit."""
        from pccompile.backends.netlist.resources import resources

        return resources(self, None if chip is None else self.place(chip))

    def learned(self, result: Result) -> Netlist:
        """The circuit with the parameters that a simulation left."""
        return self.with_parameters(result.params)

    def with_parameters(self, params: Mapping[str, np.ndarray]) -> Netlist:
        """The circuit with these parameters, rounded to the types that its tensors have."""
        typed = {name: array.astype(self.tensors[name].dtype) for name, array in params.items()}
        return replace(self, tensors={**self.tensors, **typed})

    def save(self, folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
        """Write `name.pcnet.json` and `name.safetensors`, and return their paths. Raises CompileError."""
        from pccompile.backends.netlist.files import save

        return save(self, Path(folder), self.spec.name if name is None else name)

    def flatten(self) -> Netlist:
        """This circuit in scalar units and synapses."""
        from pccompile.backends.netlist.transforms.flatten import flatten

        return flatten(self)

    def untie(
        self,
        mode: Literal["kolen-pollack", "mirror"] = "kolen-pollack",
        init: Literal["transpose", "random"] = "transpose",
        decay: float = 0.01,
        seed: int = 0,
    ) -> Netlist:
        """This circuit with feedback that has parameters of its own, which learn to match."""
        from pccompile.backends.netlist.transforms.untie import untie

        return untie(self, mode, init, decay, seed)

    def on_off(self) -> Netlist:
        """This circuit with errors in pairs of channels that are never negative."""
        from pccompile.backends.netlist.transforms.on_off import on_off

        return on_off(self)

    def split_fan_in(self, limit: int) -> Netlist:
        """This circuit with at most `limit` synapses on each unit."""
        from pccompile.backends.netlist.transforms.split_fan_in import split_fan_in

        return split_fan_in(self, limit)

    @staticmethod
    def load(path: str | Path) -> Netlist:
        """The netlist of a description and the tensors beside it, checked. Raises CompileError with all problems."""
        from pccompile.backends.netlist.files import load

        return load(Path(path))


def _named(kind: str, values: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors by name, from one, a sequence in order, or a mapping."""
    if not isinstance(values, Mapping):
        if not isinstance(values, list | tuple):
            values = (values,)
        if len(values) > len(names):
            raise CompileError(f"{len(values)} {kind}s are given, the circuit has {len(names)}")
        values = dict(zip(names, values, strict=False))
    if unknown := set(values) - set(names):
        raise CompileError(f"the circuit has no {kind} {', '.join(sorted(map(str, unknown)))}")
    return {k: _array(v) for k, v in values.items()}


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return np.asarray((value.double() if value.is_floating_point() else value).numpy())
