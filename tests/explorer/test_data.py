"""What an exploration says, held against the model itself; and the page that carries it."""

import ast
import base64
import gzip
import hashlib
import json
import re
import textwrap
from importlib.resources import files

import jsonschema
import pytest
import torch
from torch import nn

import pccompile
from pccompile.explorer import Exploration
from pccompile.explorer.explore import VENDOR, script, vendored
from pccompile.explorer.vertices import spots

ROOM = files("pccompile.explorer")


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h, c = self.cell(x)
        h, c = self.cell(x, (h, c))
        return self.out(h)


def squared(output, target):
    return 0.5 * (output - target).square().sum()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 4), torch.randn(3, 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture(scope="module")
def found(model, batch):
    x, y = batch
    pc = pccompile.compile(
        model, (x,), algorithm="strict", loss=squared, steps=6, rate=0.1, granularity="op", check=False
    )
    before = {k: p.detach().clone() for k, p in model.state_dict().items()}
    made = pc.explore((x,), target=y, algorithms={"exact": {}, "fixed-prediction": {"steps": 5, "rate": 1.0}})
    assert all(torch.equal(before[k], p) for k, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    return made


def test_the_data_is_what_the_schema_says(found) -> None:
    schema = json.loads(ROOM.joinpath("exploration.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(found.json()), schema)
    assert [r["name"] for r in found.data["runs"]] == ["strict", "exact", "fixed-prediction"]
    assert [v["name"] for v in found.data["graphs"][0]] == ["input_1", "tanh", "output"] or len(
        found.data["graphs"]
    ) == 1


def test_errors_are_those_of_inference_by_hand(found, model, batch) -> None:
    """Strict inference as a loop over torch's own operations."""
    (x, y), (first, _, last) = batch, model
    names = [v["name"] for v in found.data["graphs"][0]]
    with torch.no_grad():
        a = first(x)
        b = torch.tanh(a)
        for step in range(7):
            ea, eb, eo = a - first(x), b - torch.tanh(a), y - last(b)
            for name, e in zip(names, (ea, eb, eo), strict=True):
                assert found.data["runs"][0]["errors"][name][step] == pytest.approx(
                    float(e.square().mean().sqrt()), rel=2e-3, abs=1e-7
                )
            free = 0.5 * float(ea.square().sum() + eb.square().sum() + eo.square().sum())
            assert found.data["runs"][0]["free_energy"][step] == pytest.approx(free, rel=2e-3)
            a = a + 0.1 * ((1 - torch.tanh(a) ** 2) * eb - ea)
            b = b + 0.1 * (eo @ last.weight - eb)


@pytest.mark.parametrize("run, how", [
    ("strict", {"rate": 0.1}), pytest.param("fixed-prediction", {"rate": 1.0}, marks=pytest.mark.slow),
])  # fmt: skip
def test_gradients_after_so_many_steps_are_those_of_a_program_with_so_many(found, model, batch, run, how) -> None:
    x, y = batch
    model.zero_grad(set_to_none=True)
    squared(model(x), y).backward()
    true = {k: p.grad.clone() for k, p in model.named_parameters()}
    shown = next(r for r in found.data["runs"] if r["name"] == run)["gradients"]
    for i, steps in enumerate(shown["steps"]):
        model.zero_grad()
        settings = {"algorithm": run, "granularity": "op", "check": False, **how}
        pc = pccompile.compile(model, (x,), loss=squared, steps=steps, **settings)
        pc.loss(x, target=y).backward()
        for k, p in model.named_parameters():
            ratio = float(p.grad.norm() / true[k].norm())
            assert shown["parameters"][k]["ratio"][i] == pytest.approx(ratio, rel=2e-3, abs=1e-6), (steps, k)
            if ratio:
                cosine = float(torch.cosine_similarity(p.grad.flatten(), true[k].flatten(), 0))
                assert shown["parameters"][k]["cosine"][i] == pytest.approx(cosine, abs=1e-4)
    model.zero_grad(set_to_none=True)
    exact = found.data["runs"][1]["gradients"]["parameters"]
    assert all(p["cosine"][-1] == pytest.approx(1) and p["ratio"][-1] == pytest.approx(1) for p in exact.values())


def test_differences_of_stages_make_one_of_the_other(found) -> None:
    before: dict[str, list[str]] = {}
    for stage in found.data["stages"]:
        lines, old, new, at = stage["lines"], [], [], 0
        source = iter(before.get(stage["kind"], []))
        for sign, count in stage["changes"]:
            for _ in range(count):
                if sign != "+":
                    old.append(next(source))
                if sign != "-":
                    new.append(lines[at])
                    at += 1
                if sign == "=":
                    assert old[-1] == new[-1]
        assert not stage["changes"] or (new == lines and old == before[stage["kind"]])
        before[stage["kind"]] = lines
    assert {s["kind"] for s in found.data["stages"]} == {"graph", "vertices", "program", "code"}


def test_pictures_are_of_the_first_sample(found, batch) -> None:
    run = next(r for r in found.data["runs"] if r["name"] == "strict")
    wide, high, top, pixels = run["pictures"]["of"]["output" if "output" in run["errors"] else list(run["errors"])[-1]]
    assert (wide, high) == (2, 1)
    assert len(pixels) == 2 * wide * high * (run["steps"] + 1)
    assert max(bytes.fromhex(pixels)) == 255
    assert top > 0


def test_calls_of_one_module_are_told_apart(batch) -> None:
    model = Cell()
    pc = pccompile.compile(model, (batch[0],), granularity="op", check=False)
    places = spots(pc.graph.vertices, model)
    assert {s.module for s in places.values()} == {("cell · call 1",), ("cell · call 2",), ("out",)}
    assert len({(*s.module, s.label) for s in places.values()}) == len(places)


def test_code_is_that_of_each_vertex(found) -> None:
    for run in found.data["runs"]:
        rows = run["code"]["text"].split("\n")
        assert "record" not in run["code"]["text"]
        for name, functions in run["code"]["lines"].items():
            for numbers in functions.values():
                lines = [rows[n - 1] for n in numbers]
                ast.parse(textwrap.dedent("\n".join(lines)))
            assert any(f"prediction_{name} = " in rows[n - 1] for n in functions["predict"])


def test_no_number_is_null(batch) -> None:
    x, y = batch
    model = nn.Sequential(nn.Linear(4, 5), nn.ELU(), nn.Linear(5, 2))
    pc = pccompile.compile(
        model, (x,), algorithm="strict", loss=squared, steps=60, rate=50.0, check=False, on_divergence="ignore"
    )
    run = json.loads(pc.explore((x,), target=y, algorithms=[]).json())["runs"][0]
    assert run["free_energy"][-1] is None
    assert not run["settles"]
    assert run["diverges"][0] in run["errors"]


def test_what_cannot_be_explored_is_said(batch) -> None:
    x, _ = batch
    pc = pccompile.compile(nn.Linear(4, 2), (x,), check=False)
    with pytest.raises(pccompile.CompileError, match="unknown algorithm none"):
        pc.explore((x,), algorithms=["none"])
    with pytest.raises(pccompile.CompileError, match="bidirectional has layers of its own"):
        pc.explore((x,), algorithms=["bidirectional"])


def test_the_page_is_one_small_file_that_names_no_other(found) -> None:
    page = found.html()
    assert len(page.encode()) < 2_500_000
    shell = re.sub(r">[A-Za-z0-9+/=]{1000,}<", "><", page)  # what is packed is packed
    shell = shell.replace(script(), "").replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|//[a-z]+\.|src=|@import|url\((?!data:)", shell)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
    run = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert run == [script()]
    for text in (*vendored(), script().encode()):
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in policy


def test_the_data_comes_out_of_the_page_as_it_went_in(batch) -> None:
    hostile = {"title": "</script><!--<script>\u2028\"'漢{{data}}{{script}}"}
    page = Exploration(hostile).html()
    packed = re.search(r'id="data">([^<]*)</script>', page)[1]
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == hostile
    assert page.count("</script>") == 3 + 1 + 1


def test_files_of_others_are_kept(found, tmp_path) -> None:
    path = tmp_path / "page.html"
    assert found.save(path) == path
    found.save(path)  # our own
    path.write_text(path.read_text().replace("<main>", "<main><p>mine</p>"))
    with pytest.raises(pccompile.CompileError, match="was edited since"):
        found.save(path)
    other = tmp_path / "notes.html"
    other.write_text("mine")
    with pytest.raises(pccompile.CompileError, match="not generated by pccompile"):
        found.save(other)
    data = found.save(tmp_path / "data.json")
    assert json.loads(data.read_text())["runs"][0]["errors"] == found.data["runs"][0]["errors"]
    found.save(data)


def test_what_is_vendored_is_as_it_was_pinned() -> None:
    pins = json.loads(ROOM.joinpath("vendor/packages.json").read_text())
    for name, digest in pins["sha256 of what is packed"].items():
        content = gzip.decompress(ROOM.joinpath(f"vendor/{name}").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
    assert set(VENDOR) < set(pins["sha256 of what is packed"])
    licences = ROOM.joinpath("vendor/LICENSES.txt").read_text()
    assert all(word in licences for word in ("Viz.js", "Graphviz", "Expat", "KaTeX", "uPlot", "Permission is hereby"))


def test_scripts_are_short() -> None:
    for path in (p for p in ROOM.joinpath("page").iterdir() if p.name.endswith((".js", ".css"))):
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, path.name
        assert max(map(len, lines)) <= 200, path.name
