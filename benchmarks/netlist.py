"""Time of a tick of the netlist simulator against the number of synapses: it grows in proportion to them.

Every circuit has three layers of equal size; half of the feedback is on the move while errors settle. `settle` is a
tick in which inputs stand still, `first` the one after new inputs, `learn` one that changes all parameters and
computes everything with them anew. Times are the best of several, as timeit advises.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.format import Phase, Plasticity, Population, Projection, Spec
from pccompile.pipeline import compile_netlist


def dense(synapses: int) -> Netlist:
    """Three square layers."""
    width = round((synapses / 3) ** 0.5)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(width, width), nn.Tanh())))
    return compile_netlist(model.double(), (torch.randn(1, width).double(),))


def conv(synapses: int) -> Netlist:
    """Three 3×3 convolutions of 8 channels; the synapses are those without sharing of the kernels."""
    side = max(3, round((synapses / (3 * 9 * 64)) ** 0.5))
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())))
    return compile_netlist(model.double(), (torch.randn(1, 8, side, side).double(),))


def sparse(synapses: int) -> Netlist:
    """Three layers of pairs drawn at random, sorted by target, a weight each: 100 for every unit."""
    rng = np.random.default_rng(0)
    pairs = synapses // 3
    units = max(10, pairs // 100)
    populations = {"a": Population(shape=(units,), unit="input", role="value", vertex="a"),
                   "ed": Population(shape=(units,), unit="input", role="error", vertex="d")}  # fmt: skip
    populations |= {n: Population(shape=(units,), unit="sum", role="value", vertex=n) for n in "bcd"}
    populations |= {
        f"e{n}": Population(shape=(units,), unit="integrator", role="error", vertex=n, rate=0.125) for n in "abc"
    }
    tensors, projections, rules = {}, [], []
    for pre, post in ("ab", "bc", "cd"):
        drawn = rng.integers(units, size=(2, pairs))
        tensors[f"i{post}"] = drawn[:, np.lexsort(drawn[::-1])]
        tensors[f"w{post}"] = rng.standard_normal(pairs) / 10
        wiring = {"op": "sparse", "index": f"i{post}", "param": f"w{post}"}
        projections.append(Projection(name=f"p{post}", pre=pre, post=f"{post}:in", **wiring))
        projections.append(Projection(name=f"q{post}", pre=f"e{post}", post=f"e{pre}:in", transpose=True, **wiring))
        rules.append(
            Plasticity(param=f"w{post}", rule="sparse", pre=pre, post=f"e{post}", via=f"p{post}", rate=2.0**-10)
        )
    phases = (Phase(name="settle", ticks=1), Phase(name="learn", ticks=1))
    return Netlist(Spec(name="sparse", phases=phases, populations=populations, projections=tuple(projections),
                        plasticity=tuple(rules)), tensors)  # fmt: skip


FORMS = {"dense": dense, "conv": conv, "sparse": sparse}


def milliseconds(net: Netlist, budget: float = 2.0) -> tuple[float, float, float]:
    """Milliseconds of a settling tick, of the first one and of a learning one, each the best of several."""
    simulator = net.simulator(
        {n: np.random.randn(1, *p.shape) for n, p in net.spec.populations.items() if p.unit == "input"}
    )
    simulator.run([("settle", 2), ("learn", 1)])
    found: list[float] = []
    for phase, fresh in (("settle", False), ("settle", True), ("learn", False)):
        times: list[float] = []
        while len(times) < 3 or (sum(times) < budget and len(times) < 50):
            if fresh:
                for name, p in net.spec.populations.items():
                    if p.unit == "input":
                        simulator.set(name, simulator.states[name])
            start = time.perf_counter()
            simulator.tick(phase)
            times.append(time.perf_counter() - start)
        found.append(1e3 * min(times))
    return found[0], found[1], found[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=float, default=[1e4, 1e5, 1e6, 1e7], help="synapses")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    options = parser.parse_args()
    print(f"{'form':8}{'synapses':>12}{'settle ms':>12}{'first ms':>12}{'learn ms':>12}   ns a synapse, learning")
    for form in options.forms:
        for size in options.sizes:
            settle, first, learn = milliseconds(FORMS[form](int(size)))
            print(
                f"{form:8}{int(size):12,}{settle:12.3f}{first:12.3f}{learn:12.3f}{1e6 * learn / size:12.2f}", flush=True
            )


if __name__ == "__main__":
    main()
