"""Everything that a netlist can have wrong is found, named, and found together with the rest."""

import copy
import json
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netlist.nets import NETS, again, net, presented, record
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.check import check
from pccompile.backends.netlist.files import parse
from pccompile.diagnostics import CompileError


def population(name: str, /, **fields: object) -> Callable[[dict], None]:
    return lambda r: r["populations"][name].update(fields)


def projection(name: str, /, **fields: object) -> Callable[[dict], None]:
    return lambda r: next(p for p in r["projections"] if p["name"] == name).update(fields)


def rule(param: str, /, **fields: object) -> Callable[[dict], None]:
    return lambda r: next(p for p in r["plasticity"] if p["param"] == param).update(fields)


def without(name: str, field: str) -> Callable[[dict], None]:
    return lambda r: next(p for p in r["projections"] if p["name"] == name).pop(field)


def into(name: str, /, **fields: object) -> Callable[[dict], None]:
    def change(r: dict) -> None:
        r["projections"].append({"name": "extra", "pre": name, "post": f"{name}:in", "op": "one_to_one", **fields})

    return change


def port(kind: str, name: str, /, **fields: object) -> Callable[[dict], None]:
    return lambda r: r[kind][name].update(fields)


def at(kind: str, name: str, /, **fields: object) -> Callable[[dict], None]:
    return lambda r: r[kind].update({name: fields})


def duplicated(kind: str) -> Callable[[dict], None]:
    return lambda r: r[kind].append(r[kind][0])


WRONG = {
    "pre dangles": ("mlp", projection("n0.v->n1.v", pre="n9.v"), "it reads n9.v, which is no population"),
    "post dangles": (
        "mlp",
        projection("n0.v->n1.v", post="n9.v:in"),
        "it reaches n9.v:in, which is no population:port",
    ),
    "no port": ("mlp", projection("n0.v->n1.v", post="n1.v"), "it reaches n1.v, which is no population:port"),
    "unknown port": ("mlp", projection("n0.v->n1.v", post="n1.v:x"), "it reaches n1.v:x; units of kind map have in"),
    "into an input": ("mlp", projection("n0.v->n1.v", post="n2.t:in"), "units of kind input have no ports"),
    "projection twice": ("mlp", duplicated("projections"), "2 projections are called input.v->n0.v"),
    "phase twice": ("mlp", duplicated("phases"), "2 phases are called settle"),
    "argument twice": ("mlp", duplicated("arguments"), "argument input is there 2 times"),
    "negative ticks": ("mlp", lambda r: r["phases"][0].update(ticks=-1), "phase settle has -1 ticks"),
    "cycle": ("mlp", into("n0.v"), "a cycle without an integrator or a delay: n0.v → n0.v"),
    "longer cycle": (
        "mlp",
        into("n2.v", post="n0.v:in", op="gather", index="#c"),
        "a cycle without an integrator or a delay: n0.v → n2.v → n1.v → n0.v",
    ),
    "infinite gain": ("mlp", projection("n0.v->n1.v", gain=float("inf")), "gain inf is not finite"),
    "negative delay": ("mlp", projection("n0.v->n1.v", delay=-1), "delay -1 is negative"),
    "endless delay": ("mlp", projection("n0.v->n1.v", delay=10**9), "delays keep 3000000000 states"),
    "sizes": ("mlp", population("n1.v", shape=[1, 4]), "projection n0.v->n1.v: one_to_one from 3 units to 4"),
    "a billion units": ("mlp", population("n1.v", shape=[10**3] * 3), "1000000000 units or entries; at most"),
    "overflowing units": ("mlp", population("n1.v", shape=[2**32, 2**32]), "18446744073709551616 units or entries"),
    "together too many": (
        "mlp",
        lambda r: [population(f"n{i}.v", shape=[6 * 10**6])(r) for i in (0, 1)],
        "units; at most 10000000 are taken",
    ),
    "negative length": ("mlp", population("n1.v", shape=[-1, 3]), "has a negative length"),
    "negative length of a select": ("ranked", population("amin.v", shape=[-1, 1]), "has a negative length"),
    "axes": ("mlp", population("n1.v", shape=[1] * 99), "has a negative length or more than 32 axes"),
    "no function": ("mlp", population("n1.v", function=None), "units of kind map need a function"),
    "unknown function": ("mlp", population("n1.v", function="open(x)"), "not in the language of netlists: open(x)"),
    "code": ("mlp", population("n1.v", function="x.__class__"), "not in the language of netlists: x.__class__"),
    "import": ("mlp", population("n1.v", function="__import__('os')"), "not in the language of netlists"),
    "two lines": ("mlp", population("n1.v", function="x\ny"), "no expression in x"),
    "arity": ("mlp", population("n1.v", function="tanh(x, x)"), "cannot be computed"),
    "order": ("mlp", population("n1.v", function="polygamma(x, x)"), "the order of polygamma is a whole number"),
    "condition": ("mlp", population("n1.v", function="Piecewise((1, x), (2, True))"), "cannot be computed"),
    "conditions": ("mlp", population("n1.v", function="x & (x > 0)"), "cannot be computed"),
    "large number": ("mlp", population("n1.v", function="x + 1e999"), "numbers of an expression are finite"),
    "very large number": ("mlp", population("n1.v", function="x + 1" + "0" * 400), "cannot be computed"),
    "deep expression": ("mlp", population("n1.v", function="-" * 9000 + "x"), "no expression in x"),
    "long expression": ("mlp", population("n1.v", function="x" + "+x" * 9000), "an expression of 18001 characters"),
    "function of a sum": ("mlp", population("n0.v", function="x"), "function means nothing for units of kind sum"),
    "rate of a sum": ("mlp", population("n0.v", rate=0.5), "rate means nothing for units of kind sum"),
    "ranks of a sum": ("mlp", population("n0.v", ranks="0.bias"), "ranks means nothing for units of kind sum"),
    "rate too large": ("mlp", population("n0.e", rate=2.0), "an integrator settles for"),
    "rate zero": ("mlp", population("n0.e", rate=0.0), "an integrator settles for"),
    "leak negative": ("mlp", population("n0.e", leak=-1.0), "an integrator settles for"),
    "bias unknown": ("mlp", population("n0.v", bias="9.bias"), "bias 9.bias is not a tensor of numbers"),
    "bias axis": ("mlp", population("n0.v", bias_axis=2), "does not lie along axis 2"),
    "bias shape": ("mlp", population("n0.v", bias="2.bias"), "bias 2.bias of shape [1] does not lie along axis 1"),
    "bias size": ("mlp", population("n0.v", bias="2.bias", bias_axis=None), "has 1 entries for 3 units"),
    "bits": ("mlp", population("n0.v", bits=[99, 3]), "bits [99, 3] are no total of 2 to 32"),
    "guard": ("mlp", population("n0.e", guard=99), "guard 99 is not within 0 to 32"),
    "table": ("mlp", population("n1.v", table=[60, 3]), "table [60, 3] is no log2"),
    "tensor bits": ("mlp", lambda r: r["tensors"]["0.bias"].update(bits=[1, 0]), "tensor 0.bias: bits [1, 0]"),
    "empty name": ("mlp", lambda r: at("populations", "", **r["populations"]["n0.v"])(r), "a population is called ''"),
    "control character": (
        "mlp",
        lambda r: at("populations", "a\x1b[2J", **r["populations"]["n0.v"])(r),
        "a population is called 'a\\x1b[2J'",
    ),
    "long name": ("mlp", projection("n0.v->n1.v", name="n" * 2000), "names are printable and of 1 to 1000 characters"),
    "field without meaning": ("mlp", projection("n0.v->n1.v", param="0.bias"), "param means nothing for one_to_one"),
    "no param": ("mlp", without("input.v->n0.v", "param"), "dense needs param"),
    "unknown param": (
        "mlp",
        projection("input.v->n0.v", param="9.weight"),
        "param 9.weight is not a tensor of numbers",
    ),
    "param of places": ("mlp", projection("input.v->n0.v", param="#c"), "param #c is not a tensor of numbers"),
    "dense shape": ("mlp", projection("input.v->n0.v", param="2.weight"), "a matrix [1, 3] does not lead from [1, 2]"),
    "dense transposed": (
        "mlp",
        projection("input.v->n0.v", transpose=True),
        "a matrix [3, 2] does not lead from [1, 3]",
    ),
    "kernel shape": ("cnn", projection("input.v->n0.v", param="4.weight"), "a kernel [3, 2] does not lead from"),
    "groups": ("grouped", projection("input.v->n0.v", groups=4), "a kernel [4, 2, 3] in 4 groups leads from"),
    "padding": (
        "grouped",
        projection("input.v->n0.v", padding=[3]),
        "leads from [1, 4, 6] to [1, 4, 4], not to [1, 4, 3]",
    ),
    "stride": ("grouped", projection("input.v->n0.v", stride=[0]), "stride, dilation and groups are at least 1"),
    "dilation": ("grouped", projection("input.v->n0.v", dilation=[1, 1]), "are not of the same 1 to 3 axes"),
    "gather range": ("mlp", projection("n0.v->n1.v", op="gather", index="#far"), "index goes from 0 to 7, units and"),
    "gather negative": ("mlp", projection("n0.v->n1.v", op="gather", index="#before"), "index goes from -2 to 0"),
    "gather rows": ("mlp", projection("n0.v->n1.v", op="gather", index="#two"), "has not a row for each of 3 units"),
    "gather of numbers": ("mlp", projection("n0.v->n1.v", op="gather", index="2.weight"), "is not a tensor of whole"),
    "sparse rows": (
        "mlp",
        projection("n0.v->n1.v", op="sparse", index="#c", param="2.weight"),
        "index #c is not two rows of whole numbers",
    ),
    "sparse range": (
        "mlp",
        projection("n0.v->n1.v", op="sparse", index="#pairs", param="2.weight"),
        "index of pre goes from 0 to 7",
    ),
    "sparse entries": (
        "mlp",
        projection("n0.v->n1.v", op="sparse", index="#two", param="2.bias"),
        "3 synapses, and 1 entries of the parameter",
    ),
    "elements": (
        "mlp",
        projection("n0.v->n1.v", op="sparse", index="#two", param="2.bias", elements="#three"),
        "elements goes from 0 to 2",
    ),
    "elements shape": (
        "mlp",
        projection("n0.v->n1.v", op="sparse", index="#two", param="2.bias", elements="#c"),
        "elements #c are not 3 whole numbers",
    ),
    "by no select": (
        "ranked",
        projection("b.v->gather.v", by="b.v"),
        "it is routed by b.v, which is no select population",
    ),
    "by nothing": ("ranked", projection("b.v->gather.v", by="nobody"), "it is routed by nobody, which is no select"),
    "route without by": ("ranked", without("b.v->gather.v", "by"), "route needs by"),
    "route slots": (
        "ranked",
        projection("b.v->gather.v", index="#narrow"),
        "its index has 1 slots, topk.v chooses among 5",
    ),
    "route elements": ("ranked", projection("b.v->gather.v", elements="#four"), "elements goes from 0 to 9"),
    "route winners": ("ranked", projection("b.v->gather.v", by="amin.v"), "2 winners of amin.v for 4 units"),
    "select without gather": (
        "ranked",
        projection("a.v->topk.v", op="dense", param="a.weight"),
        "select needs one gather; 1 projections reach it",
    ),
    "select with two": (
        "ranked",
        into("a.v", name="a.v->topk.v again", post="topk.v:in", op="gather", index="#index.0"),
        "select needs one gather; 2 projections reach it",
    ),
    "no candidate": (
        "ranked",
        projection("a_linear.v->amin.v", index="#none"),
        "unit 0 is to hold rank 0 of 0 candidates",
    ),
    "rank": ("ranked", population("topk.v", ranks="#four"), "unit 3 is to hold rank 9 of 5 candidates"),
    "ranks": ("ranked", population("topk.v", ranks="#c"), "ranks #c are not a tensor of 4 whole numbers"),
    "plastic param": ("mlp", rule("0.weight", param="9.weight"), "9.weight is not a tensor of numbers"),
    "plastic phase": ("mlp", rule("0.weight", phase="sleep"), "no phase is called sleep"),
    "plastic pre": ("mlp", rule("0.weight", pre="nobody"), "nobody is no population"),
    "plastic shape": ("mlp", rule("0.weight", pre="n0.v"), "a matrix [3, 2] does not lead from [1, 3] to [1, 3]"),
    "plastic rate": ("mlp", rule("0.weight", rate=float("nan")), "rate nan is not finite"),
    "outer without pre": ("mlp", rule("0.weight", pre=None), "outer needs pre"),
    "copy with pre": ("mlp", rule("0.bias", pre="n0.v"), "copy has no pre"),
    "copy axis": ("mlp", rule("0.bias", axis=0), "axis 0 of [1, 3] is not copied to [3]"),
    "copy size": ("mlp", rule("0.bias", post="n2.e", axis=None), "1 units are copied to 3 entries"),
    "outer axis": ("mlp", rule("0.weight", axis=0), "axis means nothing for outer"),
    "correlate via": ("cnn", rule("0.weight", via="n0.v->n1.v"), "correlate needs a conv projection"),
    "correlate shape": (
        "cnn",
        rule("0.weight", post="n4.e"),
        "a kernel [2, 2, 3, 3] does not lead from [1, 2, 4, 4] to [1, 3]",
    ),
    "sparse via": ("mlp", rule("0.weight", rule="sparse", via="input.v->n0.v"), "sparse needs a sparse projection"),
    "input dangles": ("mlp", port("inputs", "input", population="nobody"), "input input: nobody is no population"),
    "input not set": ("mlp", port("inputs", "input", population="n0.v"), "n0.v is of kind sum and cannot be set"),
    "input shape": ("mlp", port("inputs", "input", shape=[1, 3]), "input input: shape [1, 3] does not fit [1, 2]"),
    "input of nothing": ("mlp", port("inputs", "input", argument="nobody"), "input input is not among the arguments"),
    "input argument": ("mlp", port("targets", "n2", argument="input"), "target n2 takes no argument"),
    "input unknown": ("mlp", lambda r: r.update(arguments=[]), "input input is not among the arguments"),
    "output dangles": ("mlp", port("outputs", "n2", population="nobody"), "output n2: nobody is no population"),
    "target axis": ("cnn", port("targets", "n4", axis=5), "[1, 3] has no axis 5"),
    "target shape": ("cnn", port("targets", "n4", shape=[2]), "shape [2] of whole numbers does not fit [1, 3]"),
    "example": ("mlp", port("inputs", "input", example="0.bias"), "its example 0.bias is no tensor of random numbers"),
    "digest": ("mlp", at("fixed", "input", shape=[1], digest="abc"), "fixed input input: its digest is no SHA-256"),
    "fixed size": ("mlp", at("fixed", "input", shape=[10**9], digest="0" * 64), "1000000000 units or entries"),
    "fixed unknown": ("mlp", at("fixed", "mask", shape=[1], digest="0" * 64), "mask is not among the arguments"),
    "lies about a size": (
        "mlp",
        lambda r: r["tensors"]["0.bias"].update(shape=[10**9]),
        "tensor 0.bias is float64 [3], described",
    ),
    "lies about a type": ("mlp", lambda r: r["tensors"]["0.bias"].update(dtype="int64"), "described as int64 [3]"),
    "not described": ("mlp", lambda r: r["tensors"].pop("0.bias"), "tensor 0.bias is not described"),
    "missing": ("mlp", at("tensors", "more", shape=[1], dtype="int64"), "tensor more is missing"),
    "not finite": (
        "mlp",
        at("tensors", "#nan", shape=[1], dtype="float64"),
        "tensor #nan has entries that are not finite",
    ),
}

MORE = {
    "#c": np.zeros((3, 1), np.int64),
    "#far": np.array([[0], [1], [7]]),
    "#before": np.array([[0], [-1], [-2]]),
    "#two": np.zeros((2, 3), np.int64),
    "#three": np.arange(3),
    "#pairs": np.array([[0, 1, 2], [0, 1, 7]]),
    "#narrow": np.zeros((4, 1), np.int64),
    "#four": np.array([0, 1, 2, 9]),
    "#none": np.full((2, 5), -1),
    "#nan": np.array([np.nan]),
}
"""Tensors that some of the changes name."""


def changed(name: str, change: Callable[[dict], object]) -> Netlist:
    r = copy.deepcopy(record(net(name)))
    r.setdefault("fixed", {})
    before = json.dumps(r)
    change(r)
    assert json.dumps(r) != before
    used = {k: a for k, a in MORE.items() if f'"{k}"' in json.dumps(r)}
    for k, a in used.items():
        r["tensors"].setdefault(k, {"shape": list(a.shape), "dtype": str(a.dtype)})
    return again(r, net(name), used)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    name, change, message = WRONG[case]
    wrong = changed(name, change)
    with pytest.raises(CompileError) as e:
        check(wrong.spec, wrong.tensors)
    assert any(message in p.what for p in e.value.problems), e.value


def test_all_problems_come_at_once() -> None:
    wrong = changed("mlp", lambda r: [WRONG[c][1](r) for c in ("pre dangles", "unknown function", "plastic phase")])
    with pytest.raises(CompileError) as e:
        check(wrong.spec, wrong.tensors)
    assert len(e.value.problems) == 3


def test_there_are_at_most_a_hundred() -> None:
    wrong = changed("mlp", lambda r: [into("nobody", name=f"p{i}")(r) for i in range(500)])
    with pytest.raises(CompileError) as e:
        check(wrong.spec, wrong.tensors)
    assert len(e.value.problems) == 100


@pytest.mark.parametrize("name", NETS)
def test_what_is_compiled_is_sound(name: str) -> None:
    check(net(name).spec, net(name).tensors)


VALUES = st.sampled_from(
    [0, 1, -1, 2, 7, 10**9, 10**30, 0.5, -3.5, 1e300, "", "x", "n0.v", "n1.v", "n0.e", "n2.t", "n1.v:in", "0.weight",
     "0.bias", "outer", "copy", "sparse", "dense", "conv", "gather", "route", "sum", "map", "product", "integrator",
     "select", "input", "einsum", "q.v", "ab,bc->ac", "abc,dab->dc", "x**x", "log(x)", None, True, [], [1], [3, 2],
     [1, 3], {}, "settle", "learn", "\x00", "../x"]
)  # fmt: skip


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    """The places of a record."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in leaves(v, (*path, k)))] if path else [
        p for k, v in inner for p in leaves(v, (*path, k))
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["mlp", "ranked", "grouped", "attention"]), st.data())
def test_what_passes_the_check_runs(name: str, data: st.DataObject) -> None:
    r, tensors = copy.deepcopy(record(net(name))), {k: a.copy() for k, a in net(name).tensors.items()}
    if data.draw(st.booleans()):
        array = tensors[data.draw(st.sampled_from(sorted(tensors)))]
        array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(st.integers(-2, 12))
    for _ in range(data.draw(st.integers(0, 3))):
        *path, last = data.draw(st.sampled_from(leaves(r)))
        owner = r
        for key in path:
            owner = owner[key]
        owner[last] = copy.deepcopy(data.draw(VALUES))
    text = json.dumps(r).encode()
    try:
        spec = parse(text)
        check(spec, tensors)
    except CompileError:
        return
    made = Netlist(spec, tensors)
    simulator = made.simulator(presented(made))
    simulator.run([(p.name, min(p.ticks, 2)) for p in spec.phases])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_netlist_or_an_error(data: bytes) -> None:
    with pytest.raises(CompileError):
        parse(data)


def test_records_are_refused_where_a_field_is_unknown() -> None:
    r = {**record(net("mlp")), "more": 1}
    with pytest.raises(CompileError, match="unknown field `more`"):
        parse(msgspec.json.encode(r))
