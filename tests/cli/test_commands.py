"""What a user types, and what must come of it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx_frontend.build import perceptron
from safetensors.torch import load_file

import pccompile
from pccompile.cli import torch_command
from pccompile.cli.known_names import CIRCUIT_STAGES, STAGES
from pccompile.pipeline import TO_CIRCUIT, TO_VERTICES

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def start(*arguments, cwd, **more):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_at_once(option, tmp_path) -> None:
    code = f"import sys; from pccompile.cli import main; c = main([{option!r}]); sys.exit(c or 'torch' in sys.modules)"
    process = start("-c", code, cwd=tmp_path)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "pccompile" in out


def test_help(run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    shown = run("--help").out
    for text in ("--verify", "--explain", "--doctor", "package.module:factory", "exit codes: 0 done", "--time-passes"):
        assert text in shown


def test_a_usage_error_does_not_wait_for_torch(tmp_path) -> None:
    code = (
        "import sys; from pccompile.cli import main; c = main(['m.onnx', '--json']); print(c, 'torch' in sys.modules)"
    )
    out, _ = start("-c", code, cwd=tmp_path).communicate(timeout=20)
    assert out == "2 False\n"


def test_a_file_is_standalone(run, folder) -> None:
    result = run("model.onnx", "--backend", "torch", "-o", "out")
    assert (result.code, result.out.split()) == (0, ["out/model_pc.py", "out/model_pc.safetensors"])
    module, params = load(folder / "out/model_pc.py"), load_file(folder / "out/model_pc.safetensors")
    source = (folder / "out/model_pc.py").read_text()
    assert "import pccompile" not in source
    assert "autograd" not in source
    x, y = torch.randn(3, 3), torch.randn(3, 2)
    loss, gradients = module.step(params, {}, {"x": x}, [y])
    weights = [params[k].clone().requires_grad_() for k in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
    hidden = torch.tanh(torch.nn.functional.linear(x, *weights[:2]))
    expected = 0.5 * (y - torch.nn.functional.linear(hidden, *weights[2:])).square().sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for key, w in zip(("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"), weights, strict=True):
        torch.testing.assert_close(gradients[key], w.grad)


def test_again_and_under_another_name(run, folder) -> None:
    assert run("model.onnx", "-o", "out").code == 0
    assert run("model.onnx", "-o", "out", "--algorithm", "strict").code == 0
    assert run("model.onnx", "-o", "out", "--name", "other/../name").code == 0
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "model_pc.py", "model_pc.safetensors", "other_name_pc.py", "other_name_pc.safetensors",
    ]  # fmt: skip


def test_summary(run) -> None:
    result = run("somemodels:Net", "--shape", "x=4,6", "--algorithm", "fixed-prediction", "--tolerance", "1e-3")
    assert result.code == 0
    assert "fixed-prediction, tolerance 0.001" in result.out
    assert "predicted gradient error 0.000955" in result.out
    assert "predicted gradient error 0.000955" in result.err  # said at compile time
    assert "talk while importing" in result.err
    assert "talk" not in result.out


def test_quiet(run) -> None:
    result = run(
        "model.onnx", "--quiet", "--algorithm", "fixed-prediction", "--rate", "0.1", "--steps", "9", "-o", "out"
    )
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("target", ["somemodels:make", "somemodels:instance", "somemodels:Net"])
def test_factories(run, target) -> None:
    name = "x" if target.endswith("Net") else "input"
    assert run(target, "--shape", f"{name}=5,6", "--verify").code == 0


def test_example_inputs(run) -> None:
    assert run("somemodels:Words", "--verify", "--loss", "cross-entropy").code == 0
    assert run("somemodels:Words", "--shape", "ids=2,5:int64", "--verify").code == 0


def test_optional_inputs(run) -> None:
    assert run("somemodels:Net", "--shape", "scale=4,3", "--shape", "x=4,6", "--verify").code == 0


def test_keywords_and_any_number_of_inputs(run) -> None:
    assert run("somemodels:Keyword", "--shape", "gain=4,1", "--shape", "x=4,6", "--verify").code == 0
    assert run("somemodels:Several", "--shape", "p=4,6", "--shape", "q=4,6", "--verify").code == 0


def test_pt2(run, folder) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    torch.export.save(torch.export.export(model, (torch.randn(2, 3),)), folder / "saved.pt2")
    refused = run("saved.pt2", "--doctor")
    assert refused.code == 1
    assert "--trust-code" in refused.err
    assert run("saved.pt2", "-o", "out", "--trust-code").code == 0
    result = run("saved.pt2", "--verify", "--trust-code")
    assert result.code == 0, result.out
    assert run("saved.pt2", "--shape", "x=2,3").code == 2
    (folder / "damaged.pt2").write_bytes(b"nothing")
    assert run("damaged.pt2").code == 1


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction", "strict"])
def test_verify_onnx(run, algorithm) -> None:
    result = run("model.onnx", "--verify", "--algorithm", algorithm)
    assert result.code == 0, result.out
    assert "to onnxruntime" in result.out
    assert "float64" in result.out
    assert "fc1.weight" in result.out
    assert ("by design" in result.out) == (algorithm == "strict")


def test_verify_json(run) -> None:
    result = run("model.onnx", "--verify", "--json")
    report = json.loads(result.out)
    assert report["passed"]
    assert report["forward"]["reference"] == "onnxruntime"
    assert {p["name"] for p in report["parameters"]} == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert max(p["relative_error"] for p in report["parameters"]) < 1e-10


def test_verify_writes_when_all_is_well(run, folder) -> None:
    assert run("model.onnx", "--verify", "-o", "out").code == 0
    assert (folder / "out/model_pc.py").exists()


def test_verification_failure_writes_nothing(run, folder, monkeypatch) -> None:
    from dataclasses import replace

    from pccompile.ops import OPS

    op = OPS["aten.tanh.default"]

    def wrong(b, node, err):
        return {k: b("aten.mul.Tensor", m, 0.5) for k, m in op.rule(b, node, err).items()}

    monkeypatch.setitem(OPS, "aten.tanh.default", replace(op, rule=wrong))
    for algorithm in ("exact", "fixed-prediction"):
        result = run("model.onnx", "--verify", "-o", "out", "--no-check", "--algorithm", algorithm)
        assert result.code == 3, result.out
        assert "FAIL" in result.out
        assert result.err.endswith("model.onnx: verification failed, nothing written\n")
        assert not (folder / "out").exists()
    assert "DIFFERS" in run("model.onnx", "--verify", "--no-check").out


LONG = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "vgg19", "zfnet512")


@pytest.mark.parametrize(
    "network", ["squeezenet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("shufflenet", *LONG))]
)
def test_networks_with_constant_weights(run, network) -> None:
    result = run(str(LIGHT / f"light_{network}.onnx"), "--verify", "--json")
    report = json.loads(result.out)
    assert result.code == 0, result.out
    assert report["forward"]["reference"] == "onnxruntime"
    assert any("drawn anew" in n for n in report["notes"])
    reached = [p for p in report["parameters"] if p["norm"] > 0]
    assert len(reached) > 0.8 * len(report["parameters"])


def test_without_onnxruntime(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run("model.onnx", "--verify")
    assert result.code == 1
    assert 'pip install "pccompile[check]"' in result.err


def test_when_onnxruntime_cannot(run, monkeypatch) -> None:
    import onnxruntime

    def refuse(*_, **__):
        raise RuntimeError("this opset is too new\nfor me")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    result = run("model.onnx", "--verify")
    assert result.code == 0
    assert "onnxruntime cannot run the file: this opset is too new" in result.out
    assert "to onnx.reference" in result.out


def test_explain(run) -> None:
    result = run("somemodels:Net", "--shape", "x=4,6", "--explain", "a")
    assert result.code == 0
    for text in ("h = torch.tanh(self.a(x))", "somemodels.py:15", "parents", "children    tanh", "Δ a.weight = ε xᵀ",
                 "multilinear", "F.linear(x, params[", "tanh_backward("):  # fmt: skip
        assert text in result.out, text
    everything = run("somemodels:Net", "--shape", "x=4,6", "--explain")
    assert "4 vertices; rules: 2 multilinear, 2 elementwise" in everything.out
    assert "fc1_Gemm" in run("model.onnx", "--explain", "/fc1/Gemm").out


@pytest.mark.parametrize(
    "stage, text",
    [("graph", "graph {"), ("pc", "pc graph {"), ("program", "program exact {"), ("code", "def predict(")],
)
def test_emit(run, stage, text) -> None:
    result = run("model.onnx", "--emit", stage, "-o", "-")
    assert result.code == 0
    assert text in result.out


def test_emit_is_code(run) -> None:
    code = run("model.onnx", "-o", "-").out
    assert code == run("model.onnx", "--emit", "code").out
    without = run("model.onnx", "--emit", "code", "--loss", "none").out
    assert "def clamp" in code
    assert "def step" in code
    assert "def clamp" not in without
    assert "def step" not in without
    assert "def infer_and_learn" in without
    compile(without, "generated", "exec")


def test_stages_that_run_where_there_is_something_to_do(run) -> None:
    for stage, options in (("energies", ("--precision", "2")), ("feedback", ("--feedback", "random"))):
        done = run("model.onnx", "--algorithm", "strict", *options, "--print-after", stage)
        assert done.code == 0
        assert f"# after {stage}\n" in done.err
        idle = run("model.onnx", "--print-after", stage)
        assert idle.code == 0
        assert f"# {stage} had nothing to do\n" in idle.err


def test_stages_are_those_of_the_pipeline(run, folder) -> None:
    result = run(
        "model.onnx",
        "--dump-dir",
        "dump",
        "--time-passes",
        "--print-after",
        "dce",
        "--print-after",
        "emit",
        "--emit",
        "code",
    )
    assert result.code == 0
    stages = [p.stem.split("-", 1)[1] for p in sorted((folder / "dump").iterdir())]
    assert stages == ["export", *STAGES]
    assert ("import", *TO_VERTICES, "insert-vertices", "derive-rules", "schedule", "emit") == STAGES
    assert ("import", *TO_CIRCUIT, "simplify", "netlist") == CIRCUIT_STAGES
    assert "# after dce\ngraph {" in result.err
    assert "# after emit\n" in result.err
    assert "# after import" not in result.err
    assert "derive-rules" in result.err
    assert "total" in result.err
    assert result.out.startswith('"""exact predictive coding')
    (written,) = (folder / "dump").glob("*-canonicalise.txt")
    written.write_text("mine")
    assert run("model.onnx", "--dump-dir", "dump").code == 1
    assert written.read_text() == "mine"


def test_doctor(run, folder) -> None:
    result = run("model.onnx", "--doctor")
    assert result.code == 0
    assert "leaves batch open" in result.out
    assert "nothing stands in the way" in result.out
    model = perceptron()
    model.graph.node[0].op_type, model.graph.node[1].op_type = "Blend", "NotAnOperator"
    onnx.save(model, folder / "bad.onnx")
    result = run("bad.onnx", "--doctor")
    assert result.code == 1
    assert "Blend" in result.out
    assert "NotAnOperator" in result.out
    assert "2 problems" in result.out
    assert run("somemodels:Branches", "--shape", "x=2,6", "--doctor").code == 1


def test_a_bug_is_one_line(run, monkeypatch) -> None:
    class Broken(pccompile.PCModule):
        def __init__(self, *_, **__):
            raise KeyError("lost")

    monkeypatch.setattr(pccompile.api.ways, "PCModule", Broken)
    result = run("model.onnx", "-o", "out")
    assert result.code == 70
    assert result.err.count("\n") == 1
    assert "KeyError" in result.err
    assert "--debug" in result.err
    assert "Traceback" in run("model.onnx", "--debug").err


def test_interrupted(run, folder, monkeypatch) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_command, "save_generated", stop)
    result = run("model.onnx", "-o", "out", "--quiet")
    assert (result.code, result.err) == (130, "pccompile: interrupted, nothing written\n")
    assert not (folder / "out").exists()


def test_a_broken_pipe_is_silent(folder) -> None:
    process = start("-m", "pccompile.cli", "model.onnx", "--emit", "code", cwd=folder)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    assert err == ""
    assert process.returncode == 141


def test_progress_only_on_a_terminal(run) -> None:
    assert "\x1b" not in (result := run("model.onnx")).err + result.out


def test_explore(run, tmp_path) -> None:
    page = tmp_path / "net.html"
    how = ("somemodels:Net", "--shape", "x=4,6", "--algorithm", "strict", "--beside", "exact")
    assert run(*how, "--explore", str(page)).out.strip() == str(page)
    assert page.read_text().startswith("<!doctype html>")
    data = tmp_path / "net.json"
    run(*how, "--explore", str(data))
    assert [r["name"] for r in json.loads(data.read_text())["runs"]] == ["strict", "exact"]
    page.write_text("mine")
    refused = run(*how, "--explore", str(page))
    assert refused.code == 1
    assert "was not generated by pccompile" in refused.err
    assert page.read_text() == "mine"
    for more in (("--explore", "net.png"), ("--beside", "exact"), ("--explore", str(data), "-o", "out/")):
        assert run("somemodels:Net", "--shape", "x=4,6", *more).code == 2


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "language, start", [("latex", "\\begin{align*}"), ("dot", "digraph {"), ("mermaid", "flowchart")]
)
def test_drawn(run, language, start) -> None:
    assert run("somemodels:Net", "--shape", "x=4,6", "--emit", language).out.startswith(start)
