"""A netlist that runs: presentations come and go, states and parameters stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pccompile.backends.netlist.simulate.asynchronous import (
    AsynchronousFixedSimulator,
    AsynchronousSimulator,
    Asynchrony,
)
from pccompile.backends.netlist.simulate.fixed import FixedSimulator, Rounding
from pccompile.backends.netlist.simulate.synchronous import Simulator, Watch, refuse_undefined
from pccompile.backends.netlist.synapses import work
from pccompile.diagnostics import CompileError
from pccompile.limits import account, spend

if TYPE_CHECKING:
    from pccompile.backends.netlist.netlist import Netlist


class Session:
    """A netlist with states of `replicas` presentations at once, which share the parameters.

        session = net.session(replicas=32)
        for inputs, targets in batches:
            session.present(inputs, targets)
            session.run(ticks=64, learn=True)
        net = session.netlist()

    A netlist with formats (`Netlist.quantise`) runs in fixed point, any other in float64. nan and infinities are
    refused where they are presented, and where a run ends in them. asynchronous: how far from lockstep. rounding: of
    changes of parameters in fixed point. seed: of all that is drawn.
    """

    def __init__(
        self,
        net: Netlist,
        replicas: int = 1,
        *,
        asynchronous: Asynchrony | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
    ) -> None:
        self.net, self.replicas = net, replicas
        self.phases = {p.name: p.ticks for p in net.spec.phases}
        self.simulator = _simulator(net, replicas, asynchronous, rounding, seed)

    def present(
        self,
        inputs: Any = (),
        targets: Any = (),
        *,
        clamps: Any = (),
        draws: Mapping[str, Any] | None = None,
    ) -> None:
        """Set inputs, targets and clamps, as `Netlist.presentation` takes them; what is not given stays as it was."""
        self.set(self.net.presentation(inputs, targets, clamps, draws))

    def set(self, presentation: Mapping[str, np.ndarray]) -> None:
        """Set the states of input populations, `[replicas, *shape]` or one for all replicas."""
        for name, value in presentation.items():
            refuse_undefined(f"population {name}", value)
            if len(value) not in (1, self.replicas):
                raise CompileError(f"{name} has {len(value)} presentations, the session has {self.replicas} replicas")
            self.simulator.set(name, torch.from_numpy(value))

    def run(
        self,
        ticks: int | None = None,
        *,
        learn: bool = False,
        trace: Sequence[str] = (),
        watch: Watch | None = None,
        progress: bool = False,
    ) -> dict[str, np.ndarray]:
        """Settle for `ticks`, then, if `learn`, through the learning phase; return the traces.

        trace: populations whose states are kept for every tick, `[ticks, replicas, *shape]`. watch: called with each
        tick's number and states. progress: a bar on stderr, where that is a terminal. Raises CompileError that names
        the first population or parameter which then holds nan or an infinity.
        """
        if unknown := [t for t in trace if t not in self.net.spec.populations]:
            raise CompileError(f"no population is called {unknown[0]}")
        plan = [("settle", ticks if ticks is not None else self.phases.get("settle", 1))]
        if learn:
            plan.append(("learn", self.phases.get("learn", 1)))
        asked = sum(count for phase, count in plan if phase == "learn" or ticks is None)
        with account():
            each = self.replicas * work(self.net.spec, self.net.tensors)
            spend("operations", asked * each, f"running {asked:,} ticks")
        kept: dict[str, list[np.ndarray]] = {name: [] for name in trace}
        with torch.inference_mode(False), torch.no_grad(), _progress(sum(t for _, t in plan), progress) as bar:
            for phase, count in plan:
                for _ in range(count):
                    self.simulator.tick(phase)
                    for name in trace:
                        kept[name].append(self.simulator.value(name).numpy().copy())
                    if watch is not None:
                        watch(self.simulator.time, self.simulator.values())
                    bar.update()
        if undefined := self.simulator.undefined():
            raise CompileError(undefined, hint="present what its function is defined for; where it grew, a smaller eta")
        return {name: np.stack(v) for name, v in kept.items() if v}

    @property
    def states(self) -> dict[str, np.ndarray]:
        """The states of all populations, `[replicas, *shape]`."""
        return {name: s.numpy().copy() for name, s in self.simulator.values().items()}

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """The states of the outputs, `[replicas, *shape]` as the model gives them."""
        ports = self.net.spec.outputs.items()
        replicas = self.simulator.replicas
        return {o: self.simulator.value(p.population).reshape(replicas, *p.shape).numpy().copy() for o, p in ports}

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The parameters, and the constants among the tensors."""
        return {name: p.numpy().copy() for name, p in self.simulator.parameters().items()}

    @property
    def saturations(self) -> dict[str, int]:
        """In fixed point, how many units of each population, and entries of each parameter, did not fit their format.

        A unit counts once, however often it saturated since the last `reset`. What did fit is left out.
        """
        return self.simulator.saturations()

    def netlist(self) -> Netlist:
        """The netlist with the parameters as they are now."""
        return self.net.with_parameters(self.params)

    def reset(self) -> None:
        """Forget all states, inputs among them; parameters stay."""
        self.simulator.reset()


def _simulator(
    net: Netlist, replicas: int, asynchronous: Asynchrony | None, rounding: Rounding, seed: int
) -> Simulator:
    if not net.quantised:
        if asynchronous is None:
            return Simulator(net.spec, net.tensors, replicas)
        return AsynchronousSimulator(asynchronous, net.spec, net.tensors, replicas, seed=seed)
    if asynchronous is None:
        return FixedSimulator(net.spec, net.tensors, replicas, rounding, seed)
    return AsynchronousFixedSimulator(asynchronous, net.spec, net.tensors, replicas, rounding=rounding, seed=seed)


class _Bar:
    """What shows the progress of a run; nothing where there is nobody to see it."""

    def update(self) -> None:
        """One tick more."""


@contextmanager
def _progress(ticks: int, wanted: bool) -> Iterator[_Bar]:
    if not wanted:
        yield _Bar()
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("ticks", total=ticks)

        class Bar(_Bar):
            def update(self) -> None:
                shown.advance(task)

        yield Bar()
