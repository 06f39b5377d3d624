"""Graph, PCGraph and Program: their text, their verifiers, and what the passes promise."""

from __future__ import annotations

import copy
import keyword
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from helpers.models import ConvNet, Transformer, seeded
from helpers.tiny import TwoLayers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from pccompile.ir import (
    ERROR,
    Do,
    Graph,
    Node,
    Output,
    PCGraph,
    Program,
    Ref,
    Source,
    TensorType,
    Vertex,
    live,
    map_refs,
    refs,
    verify,
    verify_local,
    verify_program,
)
from pccompile.ir.names import LONGEST, RESERVED, Namer, identifier
from pccompile.ops import OPS, is_composite
from pccompile.passes.canonicalise import canonicalise
from pccompile.passes.dce import dce
from pccompile.passes.insert_vertices import insert_vertices
from pccompile.pipeline import Compiled, Options, compile_imported, import_model


def tiny(algorithm: str = "exact", granularity: str | None = None) -> Compiled:
    return pccompile.compile(
        seeded(TwoLayers), torch.zeros(3, 4).double(), algorithm=algorithm, granularity=granularity
    ).compiled


# text

STAGES = {
    "graph": lambda: tiny().graph,
    "vertices-op": lambda: tiny().pc,
    "vertices-layer": lambda: tiny(granularity="layer").pc,
    "program-exact": lambda: tiny().program,
    "program-fixed-prediction": lambda: tiny("fixed-prediction").program,
    "program-strict": lambda: tiny("strict").program,
}


@pytest.mark.parametrize("stage", STAGES)
def test_text(stage: str, golden: Callable[..., None]) -> None:
    golden(f"{STAGES[stage]()}\n", suffix=".ir")


def test_the_driver_shows_every_stage_in_order() -> None:
    stages: list[str] = []
    pccompile.compile(TwoLayers(), torch.zeros(3, 4), hook=lambda stage, result, seconds: stages.append(stage))
    order = [
        "export",
        "import",
        "import-graph",
        "canonicalise",
        "dce",
        "settle-layouts",
        "settle-presence",
        "insert-vertices",
        "derive-rules",
        "schedule",
        "emit",
    ]
    assert [s for s in stages if s in order] == order


# verifiers

FLOAT = TensorType((2,))


def node(name: str, *inputs: str, op: str = "aten.add.Tensor") -> Node:
    return Node(name, op, {f"a{i}": x if isinstance(x, Ref) else Ref(x) for i, x in enumerate(inputs)}, FLOAT)


def graph(*nodes: Node, outputs: tuple[str, ...] = ("x",), **more: Any) -> Graph:
    return Graph({"x": FLOAT}, {"w": FLOAT}, {}, nodes, outputs, **more)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (Graph({"x": FLOAT}, {"x": FLOAT}, {}, (), ("x",)), "share a name"),
        (graph(node("a", "x"), node("a", "x")), "%a is defined twice"),
        (graph(node("x", "w")), "%x is defined twice"),
        (graph(node("a", "b"), node("b", "x")), "%a reads %b before it is defined"),
        (graph(node("a", "a")), "%a reads %a before"),
        (graph(outputs=("z",)), "output %z is not defined"),
        (graph(updates={"w": "z"}), "output %z is not defined"),
        (graph(dims={"x": Source("x", 0)}), "%x is the name of a length"),
        (graph(dims={"w": Source("x", 0)}), "%w is the name of a length"),
        (graph(origin={"w": "path", "v": "path"}), "have one path"),
    ],
)
def test_a_graph_that_is_wrong_is_refused(wrong: Graph, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        verify(wrong)


def test_a_graph_that_is_right_is_returned() -> None:
    right = graph(node("a", "x", "w"), node("b", "a", "a"), outputs=("b",))
    assert verify(right) is right


def second(**changes: Any) -> PCGraph:
    """The tiny model with its second vertex changed."""
    pc = tiny().pc
    first, vertex, *rest = pc.vertices
    return replace(pc, vertices=(first, replace(vertex, **changes), *rest))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"parents": ("readout",)}, "unknown parents"),
        ({"prediction": (node("tanh", "x"),)}, "the prediction of tanh reads"),
        ({"result": Ref("elsewhere")}, "does not compute its prediction"),
        ({"rules": (node("r", ERROR, "x"),), "messages": {"hidden": Ref("r")}}, "a rule of tanh reads"),
        ({"rules": (node("r", "readout"),)}, "a rule of tanh reads"),
        ({"messages": {"x": ERROR}}, "sends messages to"),
    ],
)
def test_a_vertex_that_is_not_local_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        verify_local(second(**changes))


def test_a_parent_below_its_child_is_refused() -> None:
    pc = tiny().pc
    with pytest.raises(CompileError, match="unknown parents"):
        verify_local(replace(pc, vertices=pc.vertices[::-1]))


@pytest.mark.parametrize(
    "outputs, words",
    [
        ((Output("readout", "nowhere"),), "are no vertices"),
        ((Output("nowhere", "readout"),), "are none of the graph"),
        ((Output("readout", "readout"), Output("readout", "readout")), "clamped twice"),
    ],
)
def test_outputs_that_are_no_pairs_are_refused(outputs: tuple[Output, ...], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        verify_local(replace(tiny().pc, outputs=outputs))


def test_the_error_of_a_vertex_equals_no_name() -> None:
    assert ERROR != "err"
    assert ERROR != "err"
    assert Ref("err") != ERROR
    assert ERROR == ERROR
    assert ERROR not in {"err": 1, Ref("err"): 2}
    assert "err" not in {ERROR: 1}
    assert {ERROR: 1}[ERROR] == 1
    assert str(ERROR) == "err"
    assert pickle.loads(pickle.dumps((ERROR,)))[0] is ERROR
    assert copy.deepcopy(ERROR) is ERROR
    assert copy.copy(ERROR) is ERROR


@pytest.mark.parametrize("name", ["hidden", "x", "hidden_weight", "readout"])
def test_a_vertex_with_the_name_of_something_else_is_refused(name: str) -> None:
    pc = tiny().pc
    alias = Vertex(name, ("readout",), (), Ref("readout"), pc.vertices[-1].type)
    with pytest.raises(CompileError, match="the name of something else"):
        verify_local(replace(pc, vertices=(*pc.vertices, alias)))


@pytest.mark.parametrize("name", ["hidden", "x", "hidden_weight", "readout", "tanh"])
def test_a_rule_that_takes_the_name_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(CompileError, match=f"makes %{name}, the name of something else"):
        verify_local(second(rules=(node(name, ERROR, "hidden"),), messages={"hidden": Ref(name)}))


@pytest.mark.parametrize(
    "do", [Do("nowhere", "error", "pull"), Do("tanh", "gradient", "pull"), Do("x9", "gradient", "pull")]
)
@pytest.mark.parametrize("phase", ["infer", "learn", "sweep"])
def test_a_program_that_updates_what_is_not_there_is_refused(do: Do, phase: str) -> None:
    program = tiny().program
    with pytest.raises(CompileError, match="which the graph does not have"):
        verify_program(replace(program, **{phase: (*getattr(program, phase), do)}))


def test_the_verifiers_accept_what_the_compiler_makes() -> None:
    for algorithm in ("exact", "fixed-prediction", "strict"):
        compiled = tiny(algorithm)
        assert verify(compiled.graph) is compiled.graph
        assert verify_local(compiled.pc) is compiled.pc
        assert isinstance(verify_program(compiled.program), Program)


# helpers of the graph


def test_names_are_found_and_replaced_in_nested_arguments() -> None:
    arg = (Ref("a"), 3, (Ref("b"), "text"), None)
    assert list(refs(arg)) == ["a", "b"]
    assert map_refs(arg, lambda r: Ref(r + "1")) == (Ref("a1"), 3, (Ref("b1"), "text"), None)
    assert not isinstance(map_refs("text", lambda r: Ref("no")), Ref)


def test_live_keeps_what_is_needed_in_order() -> None:
    nodes = (node("a", "x"), node("dead", "a"), node("b", "a"))
    assert [n.name for n in live(nodes, ["b"])] == ["a", "b"]


def test_dead_code_goes_and_updates_stay() -> None:
    before = graph(node("a", "x"), node("kept", "x"), node("dead", "a"), outputs=("a",), updates={"w": "kept"})
    assert [n.name for n in dce(before).nodes] == ["a", "kept"]


# passes


@pytest.mark.parametrize("make, shape", [(TwoLayers, (3, 4)), (Transformer, (2, 3, 4)), (ConvNet, (2, 3, 8, 8))])
def test_canonical_graphs_have_nothing_left_to_rewrite(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    imported = import_model(make(), (torch.zeros(shape),))
    canonical = canonicalise(imported.graph, imported.typer)
    for n in canonical.nodes:
        assert n.op == "getitem" or (n.op in OPS and OPS[n.op].expand is None) or not is_composite(n.op), n.op
    assert canonicalise(canonical, imported.typer) == canonical
    assert verify(canonical)


def test_passes_leave_their_argument_alone() -> None:
    imported = import_model(Transformer(), (torch.zeros(2, 3, 4),))
    before = str(imported.graph)
    first = compile_imported(imported, Options())
    second = compile_imported(imported, Options())
    assert str(imported.graph) == before
    assert str(first.pc) == str(second.pc)
    assert first.source.text == second.source.text


def test_a_detached_value_is_behind_a_barrier() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                gate = torch.sigmoid(self.a(x))
            return self.b(x) * gate + self.b(x).detach()

    compiled = pccompile.compile(Detached(), torch.zeros(2, 3)).compiled
    assert any("stop_gradient" in n.op for n in compiled.graph.nodes)
    assert "a_weight" not in {p for v in compiled.pc.vertices for p in v.messages}
    sent = {v.name for v in compiled.pc.vertices if "b_weight" in v.messages}
    assert len(sent) == 1


def test_a_tied_parameter_arrives_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.embed(x)))

    imported = import_model(Tied(), (torch.zeros(2, 5, dtype=torch.long),))
    assert len(imported.graph.params) == 1
    (name,) = imported.graph.params
    readers = [n for n in imported.graph.nodes if name in n.inputs]
    assert len(readers) == 2


def test_the_batch_dimension_is_free_and_others_are_not() -> None:
    imported = import_model(ConvNet(), (torch.zeros(2, 3, 8, 8),))
    (kind,) = imported.graph.inputs.values()
    batch, *rest = kind.shape
    assert isinstance(batch, sympy.Symbol)
    assert rest == [3, 8, 8]
    assert {d.tensor for d in imported.graph.dims.values()} <= set(imported.graph.inputs)


def test_a_dimension_is_free_where_the_caller_says_so() -> None:
    length = torch.export.Dim("length", min=2, max=64)
    pc = pccompile.compile(Transformer(), (torch.zeros(2, 5, 4),), dynamic_shapes={"x": {1: length}})
    for size in (3, 9):
        pc(torch.zeros(2, size, 4)).sum().backward()
    assert len(pc._cache.captures) == 1


@pytest.mark.parametrize("granularity, count", [("op", 3), ("layer", 2)])
def test_a_vertex_is_an_operation_or_a_layer(granularity: str, count: int) -> None:
    assert len(tiny(granularity=granularity).pc.vertices) == count


def test_wiring_has_no_vertex() -> None:
    class Wired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.fc(x.reshape(-1, 6)).view(-1, 2, 2).transpose(1, 2).unsqueeze(0))

    pc = pccompile.compile(Wired(), torch.zeros(2, 2, 3)).graph
    assert len(pc.vertices) == 2


def test_an_output_that_others_read_gets_a_vertex_of_its_own() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(self.a(x))
            return h, self.b(h)

    pc = pccompile.compile(Both(), torch.zeros(2, 3)).graph
    children = pc.children()
    assert len(pc.outputs) == 2
    assert not any(children[o] for o in pc.clamped)


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(CompileError, match="unknown granularity"):
        insert_vertices(tiny().graph, granularity="atom")


# names


@settings(deadline=None)
@given(st.text(max_size=90))
def test_any_text_becomes_an_identifier(text: str) -> None:
    name = identifier(text)
    assert name.isidentifier()
    assert name.isascii()
    assert not keyword.iskeyword(name)
    assert name not in RESERVED
    assert len(name) <= LONGEST + 2


@settings(deadline=None)
@given(st.lists(st.text(max_size=8) | st.sampled_from(["a", "a_1", "a.1", "a 1", "class", "params"]), max_size=20))
def test_a_namer_never_repeats_itself(texts: list[str]) -> None:
    used = ["a", "x_2"]
    namer = Namer(used)
    names = [namer(t) for t in texts]
    assert len({*names, *used}) == len(names) + len(used)
    assert all(n.isidentifier() and not keyword.iskeyword(n) for n in names)


def test_long_names_keep_their_end_and_stay_apart() -> None:
    long = [identifier(f"{start}.{'block.' * 20}weight") for start in ("encoder", "decoder")]
    assert long[0] != long[1]
    assert all("weight" in name and len(name) <= LONGEST for name in long)
