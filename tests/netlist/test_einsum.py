"""Products of two populations: one projection, its adjoints, and the units that it stands for, are the same."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pccompile
from netlist.naive import Naive
from netlist.naive_fixed import FixedNaive
from netlist.nets import net, presented
from netlist.products import ProductCase, cases, circuit
from pccompile import CompileError
from pccompile.backends.netlist import Asynchrony, Netlist, NetlistOptions
from pccompile.backends.netlist.check import check
from pccompile.backends.netlist.operations import operation
from pccompile.backends.netlist.resources import law
from pccompile.pipeline import compile_netlist

PLAN = ("settle", "settle", "settle", "settle", "learn", "settle", "learn")


def ticked(made: Netlist, states: Mapping[str, np.ndarray], plan: tuple[str, ...] = PLAN) -> list[dict]:
    """States and parameters after each tick, flat."""
    check(made.spec, made.tensors)
    simulator = made.simulator({n: v.reshape(len(v), *made.spec.populations[n].shape) for n, v in states.items()})
    found = []
    for phase in plan:
        simulator.tick(phase)
        states_now = {n: v.reshape(len(v), -1).numpy().copy() for n, v in simulator.values().items()}
        found.append({**states_now, **{n: p.numpy().copy() for n, p in simulator.parameters().items()}})
    return found


def assert_same(before: list[dict], after: list[dict], exact: bool = False) -> None:
    for old, new in zip(before, after, strict=True):
        for name, value in old.items():
            tolerance = {} if exact else {"rtol": 1e-9, "atol": 1e-11}
            compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
            compare(new[name].reshape(value.shape), value, err_msg=name, **tolerance)


def swapped(made: Netlist) -> Netlist:
    """The same circuit, each product read from its second operand."""
    projections = [operation(p, made.spec.populations, made.tensors).readings(p)[-1] for p in made.spec.projections]
    return Netlist(msgspec.structs.replace(made.spec, projections=tuple(projections)), made.tensors)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_any_product_is_its_units_and_what_the_document_says(case: ProductCase) -> None:
    made = circuit(case)
    states = presented(made)
    ours = ticked(made, states)
    for other in (made.flatten(), swapped(made), made.on_off(), swapped(made).on_off().flatten(), made.split_fan_in(2)):
        assert_same(ours, ticked(other, states))
    with tempfile.TemporaryDirectory() as folder:
        naive = Naive(made.save(folder, "m")[0], 2)
    for name, value in states.items():
        naive.state[name] = value.reshape(2, -1).tolist()
    for phase, expected in zip(PLAN, ours, strict=True):
        naive.tick(phase)
        for name in made.spec.populations:
            np.testing.assert_allclose(naive.state[name], expected[name], rtol=1e-9, atol=1e-11, err_msg=name)
        for name in made.tensors:
            np.testing.assert_allclose(naive.tensors[name], expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(cases())
def test_errors_come_to_rest_on_the_gradient(case: ProductCase) -> None:
    made = circuit(case)
    states = presented(made, 1)
    x, z = (torch.tensor(states[f"{n}.in"][0] + made.tensors[f"{n}.b"]).requires_grad_() for n in "xz")
    y = case.gain * torch.einsum(f"{case.x},{case.z}->{case.y}", x, z)
    (0.5 * (torch.tensor(states["y.t"][0]) - y).square().sum()).backward()
    rest = ticked(made, states, ("settle",) * 60)[-1]
    np.testing.assert_allclose(rest["y.v"][0], y.detach().reshape(-1), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(rest["x.e"][0], -x.grad.reshape(-1), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(rest["z.e"][0], -z.grad.reshape(-1), rtol=1e-9, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(cases(), st.integers(6, 15))
@example(ProductCase("", "", "", {}, 0.3, 0, False), 16)
def test_fixed_point_is_the_same_to_the_last_bit(case: ProductCase, bits: int) -> None:
    plain = circuit(case)
    states = presented(plain)
    made = plain.quantise(8, bits, presentations=[states], ticks=3)
    ours = ticked(made, states)
    assert_same(ours, ticked(made.flatten(), states), exact=True)
    with tempfile.TemporaryDirectory() as folder:
        naive = FixedNaive(made.save(folder, "m")[0], 2)
    simulator = made.simulator(states)
    for name in states:
        naive.state[name] = [[int(v) for v in r] for r in simulator.states[name].reshape(2, -1).tolist()]
    for phase in PLAN:
        naive.tick(phase)
        simulator.tick(phase)
        for name in made.spec.populations:
            assert naive.state[name] == simulator.states[name].reshape(2, -1).tolist(), name


def test_products_too_wide_for_a_unit_are_refused() -> None:
    made = net("attention").quantise(8, 17, presentations=[presented(net("attention"))])
    with pytest.raises(CompileError, match=r"multiplies states of 17 and 17 bits: a unit for each product holds 32"):
        made.flatten()


@settings(max_examples=30, deadline=None)
@given(cases())
def test_counts_are_those_of_the_synapses(case: ProductCase) -> None:
    made = circuit(case)
    for p in made.spec.projections:
        at_work = operation(p, made.spec.populations, made.tensors)
        found = at_work.synapses()
        assert at_work.count() == len(found.post)
        assert at_work.fan_in().tolist() == np.bincount(found.post, minlength=at_work.post.size).tolist()
        inside = np.random.default_rng(0).random(at_work.post.shape) < 0.5
        reached = np.bincount(found.pre[inside.reshape(-1)[found.post]], minlength=at_work.pre.size)
        assert at_work.sent(inside).tolist() == reached.tolist()
        assert len({*zip(found.post.tolist(), found.pre.tolist(), strict=True)}) == len(found.post)


class Product(nn.Module):
    """A function of two learned signals."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.a, self.b = function, nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.tanh(self.a(x)), self.b(x))


MODELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "matrices": (lambda a, b: a @ b.transpose(-1, -2), (2, 5, 3)),
    "broadcast": (lambda a, b: a @ b[:1].transpose(-1, -2), (3, 2, 3)),
    "broadcast of both": (lambda a, b: a[:, None] @ b[None].transpose(-1, -2), (3, 2, 3)),
    "broadcast and repeated": (lambda a, b: a[:1] @ b[:1].expand(3, -1, -1).mT, (2, 2, 3)),
    "repeated by both": (lambda a, b: a[:1].expand(3, -1, -1) @ b[:1].expand(3, -1, -1).mT, (2, 2, 3)),
    "with itself": (lambda a, b: a @ a.transpose(-1, -2) + b.sum(), (4, 3)),
    "heads": (lambda a, b: a.view(2, 3, 2, 2).transpose(1, 2) @ b.view(2, 3, 2, 2).permute(0, 2, 3, 1), (2, 3, 3)),
    "vectors": (lambda a, b: torch.dot(a[0], b[1]) + a.mv(b[0]), (3, 3)),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->jib", a, b), (2, 3, 3)),
    "einsum of repeated": (lambda a, b: torch.einsum("bik,jk->bij", a, b[0]), (2, 3, 3)),
    "chain": (lambda a, b: torch.softmax(a @ b.mT, -1) @ b, (2, 3, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_their_circuits_and_these_their_units(name: str) -> None:
    function, shape = MODELS[name]
    model, x = Product(function).double(), torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    options = NetlistOptions(loss="none", rate=0.5)
    report = pccompile.verify_circuit(model, (x,), options=options)
    assert report.passed, str(report)
    made = compile_netlist(model, (x,), options=options)
    assert any(p.op == "einsum" for p in made.spec.projections)
    states = presented(made)
    assert_same(ticked(made, states), ticked(made.flatten(), states))


def test_operands_that_are_populations_need_no_relay() -> None:
    made = compile_netlist(Product(MODELS["matrices"][0]).double(), (torch.randn(2, 5, 3).double(),))
    (product,) = (p for p in made.spec.projections if p.op == "einsum" and p.target.endswith(".v"))
    assert {*product.reads} == {"tanh.v", "b.v"}


def test_attention_needs_no_unit_for_each_pair() -> None:
    heads, tokens, width = 2, 12, 8
    layer = nn.MultiheadAttention(width, heads, batch_first=True).double()
    x = torch.randn(1, tokens, width, dtype=torch.float64)
    made = compile_netlist(layer, (x, x, x))
    scores = heads * tokens**2
    pairs = sum(p.synapses for p in made.resources().projections if p.op == "einsum")
    assert pairs >= 6 * heads * tokens**2 * (width // heads)  # forward and to both operands, of two products
    units = sum(p.size for p in made.spec.populations.values())
    assert max(p.size for p in made.spec.populations.values()) == scores
    flat = sum(p.size for p in made.flatten().spec.populations.values())
    assert flat == units + pairs + 1  # the unit at 1
    assert pairs > units


def test_the_law_knows_errors_in_either_operand() -> None:
    made = circuit(ProductCase("ab", "cb", "ac", {"a": 2, "b": 3, "c": 2}, 0.5, 0, True))
    for same in (made, swapped(made), made.flatten()):
        found = law(same.spec)
        assert found is not None
        assert found.lengths == {1}


def test_out_of_step_the_gradient_is_the_same() -> None:
    made = circuit(ProductCase("ab", "cb", "ac", {"a": 2, "b": 3, "c": 2}, 0.5, 0, True))
    states = presented(made, 1)
    still = ticked(made, states, ("settle",) * 60)[-1]
    session = made.session(asynchronous=Asynchrony(loss=0.3, delay=3, spread=0.2), seed=1)
    session.set(states)
    session.run(400)
    assert np.abs(still["x.e"]).max() > 0.1
    for name, state in session.states.items():
        np.testing.assert_allclose(state.reshape(1, -1), still[name], rtol=1e-9, atol=1e-11, err_msg=name)


def changed(**fields: object) -> Netlist:
    """The circuit of a matrix product with another projection."""
    case = ProductCase("ab", "bc", "ac", {"a": 2, "b": 3, "c": 2}, 1.0, 0, False)
    made = circuit(case)
    projections = [msgspec.structs.replace(p, **fields) if p.name == "product" else p for p in made.spec.projections]
    return Netlist(msgspec.structs.replace(made.spec, projections=tuple(projections)), made.tensors)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"with_": None}, "einsum needs with"),
        ({"subscripts": None}, "einsum needs subscripts"),
        ({"with_": "nobody"}, "it reads nobody, which is no population"),
        ({"with_": "y.v"}, "a cycle without an integrator or a delay: y.v → y.v"),
        ({"subscripts": "ab,bc"}, "subscripts 'ab,bc' are not letters as in 'ij,jk->ik'"),
        ({"subscripts": "...a,ab->b"}, "are not letters as in"),
        ({"subscripts": "aa,ac->ac"}, "subscripts aa,ac->ac have a letter twice in one term, or in one term only"),
        ({"subscripts": "ab,bc->ad"}, "have a letter twice in one term, or in one term only"),
        ({"subscripts": "ab,bc->abc"}, "do not letter the axes of [2, 3], [3, 2], [2, 2]"),
        ({"subscripts": "ba,bc->ac"}, "axis a of ba,bc->ac has the lengths 2, 3"),
        ({"param": "x.b"}, "param means nothing for einsum"),
        ({"op": "one_to_one"}, "subscripts means nothing for one_to_one"),
        ({"op": "one_to_one"}, "with means nothing for one_to_one"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict, said: str) -> None:
    wrong = changed(**fields)
    with pytest.raises(CompileError) as e:
        check(wrong.spec, wrong.tensors)
    assert any(said in p.what for p in e.value.problems), str(e.value)


def test_a_file_keeps_products(tmp_path: Path) -> None:
    made = net("attention")
    again = Netlist.load(made.save(tmp_path, "m")[0])
    assert again.spec.projections == made.spec.projections
    text = (tmp_path / "m.pcnet.json").read_text(encoding="utf-8")
    assert '"op": "einsum", "with": "k.v", "subscripts": "' in text
