"""What a testbench presents to a circuit tick by tick, and what the simulator says that it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pccompile.backends.netlist.export.datapath import Datapath
from pccompile.backends.netlist.export.verilog_text import word
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.simulate.fixed import FixedSimulator


@dataclass(frozen=True)
class Vectors:
    """Words of 32 bits, a row for each tick.

    stimulus: a bit for each phase that is on, then the states of all inputs. expected: the states of the observed
    populations and the plastic parameters at the end of the tick.
    """

    stimulus: np.ndarray
    expected: np.ndarray

    def files(self) -> dict[str, str]:
        """Both for $readmemh, by the ends of their files' names."""
        tables = {"stimulus.hex": self.stimulus, "expected.hex": self.expected}
        return {end: "".join(f"{word(v, 32)}\n" for v in rows.reshape(-1).tolist()) for end, rows in tables.items()}


def vectors(
    net: Netlist, path: Datapath, observed: Sequence[str], ticks: int, presentation: Mapping[str, np.ndarray] | None
) -> Vectors:
    """What `ticks` ticks of the fixed-point simulator present and leave.

    presentation: states of input populations, `[presentations, *shape]`, presented one after the other, each through
    all phases of the netlist, over and over; without, random numbers between −1 and 1, the same ones each time.
    """
    if presentation is None:
        generator = np.random.default_rng(0)
        presentation = {n: generator.uniform(-1, 1, (4, *path.spec.populations[n].shape)) for n in path.inputs}
    count = max((len(v) for v in presentation.values()), default=1)
    plan = [phase.name for phase in path.spec.phases for _ in range(phase.ticks)] or ["settle"]
    simulator = FixedSimulator(path.spec, net.tensors)
    stimulus, expected = [], []
    for t in range(ticks):
        shown, phase = t // len(plan) % count, plan[t % len(plan)]
        for name, value in presentation.items():
            simulator.set(name, torch.as_tensor(value[shown % len(value)]))
        on = sum(1 << i for i, name in enumerate(path.phases()) if name == phase)
        stimulus.append([on, *_whole(simulator.states[n] for n in path.inputs)])
        simulator.tick(phase)
        seen = [*(simulator.states[n] for n in observed), *(simulator.params[p] for p in path.rules)]
        expected.append(_whole(seen))
    return Vectors(np.array(stimulus, dtype=np.int64), np.array(expected, dtype=np.int64))


def _whole(tensors: Iterable[torch.Tensor]) -> list[int]:
    return [int(v) for t in tensors for v in t.reshape(-1).tolist()]
