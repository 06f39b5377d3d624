"""Circuits of one product of two populations, by hand."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.check import check
from pccompile.backends.netlist.format import Phase, Plasticity, Population, Port, Projection, Spec
from pccompile.backends.netlist.format import Tensor as Described

WHERE = ("xz", "xy", "zy", "xzy")
"""The terms that a letter may stand in: of both operands x and z, and of the result y."""


@dataclass(frozen=True)
class ProductCase:
    """y = gain · einsum(subscripts, x, z), compared with a target; whether errors go back by `transpose`."""

    x: str
    z: str
    y: str
    lengths: Mapping[str, int]
    gain: float
    delay: int
    turned: bool

    def shape(self, term: str) -> tuple[int, ...]:
        return tuple(self.lengths[c] for c in term)


@st.composite
def cases(draw: st.DrawFn) -> ProductCase:
    letters = draw(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(WHERE), max_size=4))
    terms = ["".join(draw(st.permutations([c for c, at in letters.items() if end in at]))) for end in "xzy"]
    lengths = {c: draw(st.integers(1, 3)) for c in letters}
    return ProductCase(
        *terms, lengths, draw(st.sampled_from([1.0, -0.5, 0.3])), draw(st.integers(0, 2)), draw(st.booleans())
    )


def circuit(case: ProductCase) -> Netlist:
    """Both operands are inputs and biases that learn; their errors get what the adjoints bring."""
    shapes = {"x": case.shape(case.x), "z": case.shape(case.z), "y": case.shape(case.y)}
    usual = {"vertex": "v", "role": "value"}
    populations = {f"{n}.in": Population(shape=shapes[n], unit="input", **usual) for n in "xz"}
    populations |= {f"{n}.v": Population(shape=shapes[n], unit="sum", bias=f"{n}.b", **usual) for n in "xz"}
    populations["y.v"] = Population(shape=shapes["y"], unit="sum", **usual)
    populations["y.t"] = Population(shape=shapes["y"], unit="input", role="target", vertex="v")
    populations["y.e"] = Population(shape=shapes["y"], unit="sum", role="error", vertex="v")
    populations |= {
        f"{n}.e": Population(shape=shapes[n], unit="integrator", role="error", vertex="v", rate=0.5) for n in "xz"
    }
    given = {"gain": case.gain, "op": "einsum"}
    plain = [("x.in", "x.v", 1.0), ("z.in", "z.v", 1.0), ("y.t", "y.e", 1.0), ("y.v", "y.e", -1.0)]
    projections = [Projection(name=f"{a}->{b}", pre=a, post=f"{b}:in", op="one_to_one", gain=g) for a, b, g in plain]
    product = f"{case.x},{case.z}->{case.y}"
    projections.append(Projection(name="product", pre="x.v", with_="z.v", post="y.v:in", subscripts=product,
                                  delay=case.delay, **given))  # fmt: skip
    back = {"subscripts": product, "transpose": True} if case.turned else {"subscripts": f"{case.y},{case.z}->{case.x}"}
    projections.append(Projection(name="to x", pre="y.e", with_="z.v", post="x.e:in", **back, **given))
    other = f"{case.x},{case.y}->{case.z}"  # here the error is the second operand
    projections.append(Projection(name="to z", pre="x.v", with_="y.e", post="z.e:in", subscripts=other, **given))
    rng = np.random.default_rng(len(product))
    tensors = {f"{n}.b": rng.standard_normal(shapes[n]) for n in "xz"}
    spec = Spec(
        name="product",
        phases=(Phase(name="settle", ticks=1), Phase(name="learn", ticks=1)),
        populations=populations,
        projections=tuple(projections),
        plasticity=tuple(Plasticity(param=f"{n}.b", rule="copy", post=f"{n}.e", rate=0.25) for n in "xz"),
        tensors={name: Described.of(array) for name, array in tensors.items()},
        inputs={n: Port(population=f"{n}.in", shape=shapes[n]) for n in "xz"},
        clamps={"y": Port(population="y.t", shape=shapes["y"])},
        outputs={"y": Port(population="y.v", shape=shapes["y"])},
        arguments=("x", "z"),
    )
    check(spec, tensors)
    return Netlist(spec, tensors)
