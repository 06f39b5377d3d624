"""The record of which lines of a generated file are whose, held against the file as Python reads it."""

import ast
import warnings

import pytest
import torch
from torch import nn

import pccompile
from pccompile.report.explain import lines_of, written_out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(6, 18), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1) @ v
        return self.out((mixed + x).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.cell, self.out = nn.Linear(4, 4), nn.LSTMCell(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h, c = self.cell(torch.tanh(self.inner(torch.tanh(self.inner(x)))))
        h, c = self.cell(x, (h, c))
        return self.out(h * torch.sigmoid(c))


MODELS = {"attention": (Attention, torch.randn(2, 5, 6)), "tied": (Tied, torch.randn(3, 4))}
ALGORITHMS = {
    "exact": {},
    "fixed-prediction": {"lowering": "relax", "steps": 4},
    "strict": {"steps": 4},
    "incremental": {"steps": 2},
    "zil": {},
}
QUICK = [("tied", "strict")]
SLOW = [
    ("attention", "exact"),
    ("attention", "fixed-prediction"),
    ("tied", "incremental"),
    ("tied", "zil"),
    ("tied", "exact"),
]
CASES = [*(pytest.param(c, id="-".join(c)) for c in QUICK),
         *(pytest.param(c, id="-".join(c), marks=pytest.mark.slow) for c in SLOW)]  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def compiled(request):
    model, x = MODELS[request.param[0]]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = {"algorithm": request.param[1], **ALGORITHMS[request.param[1]]}
        return pccompile.compile(model(), (x,), granularity="op", check=False, **how).compiled


def assigned(tree: ast.AST) -> dict[int, set[str]]:
    """By line, the names that statements bind which begin there; statements in which nothing is computed left out."""
    found: dict[int, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            opening = isinstance(node.value, ast.Name | ast.Constant) or "context" in ast.unparse(node.value)
            if not (opening or targets == {"device"} or "inputs[" in ast.unparse(node.value)):
                found[node.lineno] = targets
    return found


def test_what_a_vertex_is_shown_parses(compiled) -> None:
    source = written_out(compiled)
    for vertex in compiled.pc.vertices:
        parts = dict(lines_of(vertex, compiled.pc, source))
        assert "predict" in parts or not vertex.prediction
        assert {"infer", "infer_and_learn"} & set(parts), vertex.name
        for text in parts.values():
            ast.parse(text if not text.startswith('"') else f"{{{text}}}")


def test_every_line_that_computes_is_somebodys(compiled) -> None:
    source = written_out(compiled)
    owned = {(function, n) for (function, _), numbers in source.map.lines.items() for n in numbers}
    functions = {f.name: f for f in ast.parse(source.text).body if isinstance(f, ast.FunctionDef)}
    computed = 0
    for name in ("predict", "infer", "learn", "infer_and_learn"):
        if name == "infer_and_learn" and not compiled.program.sweep:
            continue
        context = {n.name for n in compiled.pc.context}
        for line, names in assigned(functions[name]).items():
            computed += 1
            assert names <= context or (name, line) in owned, source.text.splitlines()[line - 1]
    assert computed > 20


def test_a_line_is_its_vertexs(compiled) -> None:
    """What a line binds says whose it is, but for terms that are called like the sum that others add them to."""
    source = written_out(compiled)
    functions = {f.name: f for f in ast.parse(source.text).body if isinstance(f, ast.FunctionDef)}
    lines = {name: assigned(f) for name, f in functions.items()}
    sums = (n for n in ast.walk(ast.parse(source.text)) if isinstance(n, ast.AugAssign))
    summed = {ast.unparse(n.target) for n in sums}
    checked = 0
    for vertex in compiled.pc.vertices:
        for function in ("predict", "infer"):
            slots = ("prediction",) if function == "predict" else ("prediction", "value", "error")
            own = {f"{slot}_{vertex.name}" for slot in slots} - summed
            for number, names in lines[function].items():
                if names & own:
                    checked += 1
                    assert number in source.map.lines[function, vertex.name]
    assert checked > 5


def test_an_excerpt_holds_nothing_of_a_stranger(compiled) -> None:
    source = written_out(compiled)
    names = set(compiled.pc.names)
    for vertex in compiled.pc.vertices:
        for _, text in lines_of(vertex, compiled.pc, source):
            tree = ast.parse(text if not text.startswith('"') else "")
            bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            for other in names - {vertex.name}:
                assert f"error_{other}" not in bound, (vertex.name, text)
