"""The generated file: it stands alone, needs no autograd, and computes what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import ConvNet, Residual, Transformer, distance, gradients, half_squares, mlp, seeded
from helpers.tiny import TwoLayers
from laws.references import descend, survival
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO

import pccompile
from pccompile import PCModule
from pccompile.runtime.loaded_program import load

Scope = dict[str, Any]
IMAGE = (4, 3, 8, 8)
PROGRAMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "mlp-exact": (mlp, (5, 4), {}),
    "cnn-exact": (ConvNet, IMAGE, {}),
    "transformer-closed-form": (Transformer, (2, 3, 4), {"algorithm": "fixed-prediction", "steps": 9, "rate": 0.4}),
    "residual-relax": (
        Residual,
        (5, 4),
        {"algorithm": "fixed-prediction", "steps": 9, "rate": 0.4, "lowering": "relax"},
    ),
    "mlp-strict": (mlp, (5, 4), {"algorithm": "strict", "steps": 6}),
    "cnn-strict": (ConvNet, IMAGE, {"algorithm": "strict", "steps": 4}),
}
EVERY_PROGRAM = pytest.mark.parametrize("name", PROGRAMS)


@cache
def program(name: str) -> tuple[PCModule, Tensor]:
    make, shape, how = PROGRAMS[name]
    model, x = seeded(make), torch.randn(shape, dtype=torch.float64)
    return pccompile.compile(model, (x,), **how), x


def functions(name: str) -> tuple[Scope, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A file's functions, loaded as a user would, with the tables and a target to call them with."""
    pc, x = program(name)
    runtime = pc.prepare((x,))
    params, buffers = pc.tables(runtime)
    scope = load(pc.source, name)
    params = {k: p.detach() for k, p in params.items()}
    buffers = {k: b.clone() for k, b in buffers.items()}
    inputs = runtime.interface.bind((x,), {})
    shape = scope["predict"](params, {k: b.clone() for k, b in buffers.items()}, inputs)[0][0].shape
    return scope, params, buffers, inputs, torch.randn(shape, dtype=torch.float64)


# it stands alone

ALONE = """
import importlib.util, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pccompile", "passes", "backends", "onnx"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file

torch.set_num_threads(1)
for name in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location(name, f"{name}_pc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state, given, wanted = (load_file(f"{name}_{part}.safetensors") for part in ("pc", "given", "wanted"))
    fresh = lambda: {k: v.clone() for k, v in state.items()}
    inputs, target = {k: v for k, v in given.items() if k != "target"}, [given["target"]]
    outputs, context = module.predict(state, fresh(), inputs)
    loss, errors = module.clamp(outputs, target)
    moving = "strict" in name
    start = target if moving else errors
    settled = module.infer(state, context, start)
    apart = module.learn(state, context, *(settled if moving else (settled,)))
    together = module.infer_and_learn(state, context, start)
    loss_again, stepped = module.step(state, fresh(), inputs, target)
    torch.testing.assert_close(loss, wanted.pop("loss"))
    torch.testing.assert_close(loss, loss_again)
    for found in (apart, together, stepped):
        assert found.keys() == wanted.keys()
        for k in wanted:
            torch.testing.assert_close(found[k], wanted[k], rtol=1e-10, atol=1e-13)
    assert not any(t.requires_grad for t in stepped.values())
print("alone")
"""


def test_saved_files_run_where_pccompile_cannot_be_imported(tmp_path: Path) -> None:
    names = [n.replace("-", "_") for n in PROGRAMS]
    for old, name in zip(PROGRAMS, names, strict=True):
        pc, _ = program(old)
        _, _, buffers, inputs, target = functions(old)
        pc.prepare(tuple(inputs.values()))
        pc.save(tmp_path, name)
        save_file(
            {k: v.clone() for k, v in inputs.items()} | {"target": target}, str(tmp_path / f"{name}_given.safetensors")
        )
        loss = pc.loss(*inputs.values(), target=target)
        wanted = {k: g.contiguous() for k, g in gradients(pc, loss).items() if g is not None}
        save_file(wanted | {"loss": loss.detach()}, str(tmp_path / f"{name}_wanted.safetensors"))
        for k, b in pc.named_buffers():
            b.copy_(buffers[k])
    command = [sys.executable, "-I", "-c", ALONE, *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "alone\n", done.stderr


@EVERY_PROGRAM
def test_a_file_imports_torch_alone_and_knows_nothing_of_autograd(name: str) -> None:
    source = program(name)[0].source
    for word in ("autograd", "requires_grad", "backward(", "import pccompile", "from pccompile", "vjp", "jvp"):
        assert word not in source.replace("_backward(", "")
    imports = {
        a.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names
    }
    assert imports <= {"torch", "torch.nn.functional", "math"}


def test_importing_a_file_does_nothing_but_define_functions() -> None:
    for name in PROGRAMS:
        for node in ast.parse(program(name)[0].source).body[1:]:
            kernel = isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("torch.ops.")
            assert kernel or isinstance(node, ast.Import | ast.FunctionDef), ast.unparse(node)


# it computes what it says


@pytest.mark.parametrize("name", ["mlp-exact", "cnn-exact"])
def test_a_step_is_a_step_of_backpropagation(name: str) -> None:
    scope, params, buffers, inputs, target = functions(name)
    loss, found = scope["step"](params, buffers, inputs, [target])
    plain = seeded(PROGRAMS[name][0])
    value = half_squares(plain(*inputs.values()), target)
    torch.testing.assert_close(loss, value.detach())
    assert distance(found, gradients(plain, value)) < 1e-11
    for k, b in plain.named_buffers():
        torch.testing.assert_close(buffers[k], b)


@EVERY_PROGRAM
def test_infer_and_then_learn_is_infer_and_learn(name: str) -> None:
    scope, params, buffers, inputs, target = functions(name)
    outputs, context = scope["predict"](params, buffers, inputs)
    moving = "strict" in name
    start = [target] if moving else scope["clamp"](outputs, [target])[1]
    settled = scope["infer"](params, context, start)
    apart = scope["learn"](params, context, *(settled if moving else (settled,)))
    assert distance(scope["infer_and_learn"](params, context, start), apart) < 1e-13


@EVERY_PROGRAM
def test_a_file_takes_another_batch_size(name: str) -> None:
    scope, params, buffers, inputs, target = functions(name)
    pc, _ = program(name)
    pair = {k: torch.cat([x, x]) for k, x in inputs.items()}
    _, found = scope["step"](params, buffers, pair, [torch.cat([target, target])])
    fresh = pccompile.compile(seeded(PROGRAMS[name][0]), tuple(pair.values()), **PROGRAMS[name][2])
    wanted = gradients(fresh, fresh.loss(*pair.values(), target=torch.cat([target, target])))
    assert distance(found, wanted) < 1e-11
    assert pc.source == program(name)[0].source


def test_steps_and_rate_are_arguments_of_the_functions() -> None:
    scope, params, buffers, inputs, target = functions("mlp-strict")
    pc, x = program("mlp-strict")
    _, found = scope["step"](params, buffers, inputs, [target], steps=11, rate=0.05)
    wanted, _ = descend(pc, x, [target], 11, 0.05)
    assert distance(found, wanted) < 1e-10


def test_the_files_functions_change_neither_parameters_nor_targets() -> None:
    for name in PROGRAMS:
        scope, params, buffers, inputs, target = functions(name)
        before = [t.clone() for t in (*params.values(), *inputs.values(), target)]
        scope["step"](params, buffers, inputs, [target])
        assert all(map(torch.equal, before, (*params.values(), *inputs.values(), target))), name


def test_a_traceback_shows_the_generated_line() -> None:
    scope, params, buffers, inputs, _ = functions("mlp-exact")
    with pytest.raises(RuntimeError) as caught:
        scope["predict"]({k: p[:1] for k, p in params.items()}, buffers, inputs)
    assert "F.linear(" in "".join(traceback.format_exception(caught.value))


# what a loop holds


def loops(source: str) -> Iterator[ast.For]:
    yield from (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.For))


def names(node: ast.AST, context: type) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


LOOPING = {
    "mlp": (mlp, (5, 4)),
    "residual": (Residual, (5, 4)),
    "transformer": (Transformer, (2, 3, 4)),
    "cnn": (ConvNet, IMAGE),
}


def overwritten(s: ast.stmt) -> set[str]:
    """What a statement `x.add_(y)` writes over."""
    match s:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method))) if method.endswith("_"):
            return {name}
    return set()


@pytest.mark.parametrize("model", LOOPING)
@pytest.mark.parametrize("how", [{"algorithm": "fixed-prediction", "lowering": "relax"}, {"algorithm": "strict"}])
def test_every_statement_in_a_loop_depends_on_what_the_loop_changes(model: str, how: dict[str, Any]) -> None:
    make, shape = LOOPING[model]
    pc = pccompile.compile(make(), (torch.randn(shape),), **how)
    (loop,) = loops(pc.source)
    body = [s for line in loop.body for s in (line.body if isinstance(line, ast.If) else [line])]
    moving = set().union(*(names(s, ast.Store) | overwritten(s) for s in body))
    for s in body:
        assert isinstance(s, ast.Delete) or names(s, ast.Load) & moving, ast.unparse(s)


# memory


def peak(step: Callable[[], Any]) -> int:
    """The most bytes of tensors that are alive at once in a step, beyond what was alive before."""
    step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = step()
    del result
    alive = most = 0
    for e in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if e.name() == "[memory]":
            alive += e.nbytes()
            most = max(most, alive)
    return most


@pytest.mark.parametrize("name", ["paper_cnn", "mlp_gelu"])
def test_peak_memory_is_that_of_autograd(name: str) -> None:
    model = (
        ZOO["paper_cnn"].build()
        if name == "paper_cnn"
        else nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(64, 64), nn.GELU())))
    )
    x = torch.randn(32, 3, 32, 32) if name == "paper_cnn" else torch.randn(256, 64)
    pc = pccompile.compile(model, (x,))
    runtime = pc.prepare((x,))
    params, buffers = pc.tables(runtime)
    params = {k: p.detach() for k, p in params.items()}
    y = torch.randn_like(model(x)).detach()
    inputs = runtime.interface.bind((x,), {})
    ours = peak(lambda: runtime.function("step")(params, buffers, inputs, [y]))
    theirs = peak(lambda: torch.autograd.grad(half_squares(model(x), y), list(model.parameters())))
    assert ours <= 1.05 * theirs


# torch.compile


def compiled_agrees(name: str, backend: str) -> None:
    scope, params, buffers, inputs, target = functions(name)
    eager = scope["step"](params, {k: b.clone() for k, b in buffers.items()}, inputs, [target])
    torch._dynamo.reset()
    step = torch.compile(scope["step"], fullgraph=True, backend=backend)
    loss, found = step(params, buffers, inputs, [target])
    torch.testing.assert_close(loss, eager[0])
    assert distance(found, eager[1]) < 1e-10


@pytest.mark.parametrize("name", ["mlp-exact", "cnn-exact", "mlp-strict"])
def test_torch_compile_takes_a_step_whole(name: str) -> None:
    compiled_agrees(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp-exact", "cnn-exact", "mlp-strict"])
def test_inductor_computes_the_same(name: str) -> None:
    compiled_agrees(name, "inductor")


# golden files

GOLDEN = {
    f"{name}-{granularity}": {**how, "granularity": granularity}
    for granularity in ("op", "layer")
    for name, how in {
        "exact": {},
        "closed-form": {"algorithm": "fixed-prediction", "steps": 5, "rate": 0.3, "lowering": "closed-form"},
        "relax": {"algorithm": "fixed-prediction", "steps": 5, "rate": 0.3, "lowering": "relax"},
        "strict": {"algorithm": "strict", "steps": 5, "rate": 0.3},
    }.items()
}


def tiny(how: dict[str, Any]) -> tuple[PCModule, Tensor]:
    model, x = seeded(TwoLayers), torch.randn(3, 4, dtype=torch.float64)
    return pccompile.compile(model, (x,), **how), x


@pytest.mark.parametrize("name", GOLDEN)
def test_source(name: str, golden: Callable[..., None]) -> None:
    golden(tiny(GOLDEN[name])[0].source)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_run(name: str) -> None:
    """Against autograd, the binomial law on a chain, and autograd descent on the free energy."""
    how = GOLDEN[name]
    pc, x = tiny(how)
    y = torch.randn(3, 2, dtype=torch.float64)
    path = Path(__file__).parents[1] / "golden" / "programs" / f"test_source-{name}.py"
    params, buffers = pc.tables(pc.prepare((x,)))
    loss, found = load(path.read_text(encoding="utf-8"), name)["step"](params, buffers, {"x": x}, [y])
    value = half_squares(seeded(TwoLayers)(x), y)
    torch.testing.assert_close(loss, value.detach())
    if "strict" in name:
        wanted, _ = descend(pc, x, [y], 5, 0.3)
    else:
        plain = seeded(TwoLayers)
        wanted = gradients(plain, half_squares(plain(x), y))
        edges = 2 if how["granularity"] == "op" else 1
        factor = 1.0 if "exact" in name else survival(5, 0.3, edges)
        wanted = {k: g * (factor if "hidden" in k else 1.0) for k, g in wanted.items()}
    assert distance(found, wanted) < 1e-11


def test_the_same_model_gives_the_same_file() -> None:
    first, second = (pccompile.compile(Transformer(), (torch.randn(2, 3, 4),)).source for _ in range(2))
    assert first == second


def test_a_file_keeps_to_its_columns_and_to_python() -> None:
    for name in PROGRAMS:
        source = program(name)[0].source
        assert "\t" not in source
        assert all(line == line.rstrip() for line in source.splitlines())
        compile(source, name, "exec")


def test_deepcopies_of_a_table_do_not_matter() -> None:
    """Functions are pure in the parameters: equal tables, equal results."""
    scope, params, buffers, inputs, target = functions("mlp-exact")
    clone = partial(pytree.tree_map, torch.clone)
    first = scope["step"](params, buffers, inputs, [target])[1]
    second = scope["step"](clone(params), clone(buffers), clone(inputs), [target.clone()])[1]
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_results_of_fused_kernels_have_names_and_lines_fit_a_page() -> None:
    source = pccompile.compile(ConvNet(), (torch.randn(2, 3, 8, 8),)).source
    assert "norm_mean, norm_inv_std, norm_running_mean, norm_running_var" in source
    assert "minus_error_max_pool2d, gradient_conv2_weight, gradient_conv2_bias = convolution_backward(" in source
    assert not re.search(r"getitem|_legit_functional_\d", source)
    assert max(len(line) for line in source.splitlines() if not line.lstrip().startswith("#")) <= 120
