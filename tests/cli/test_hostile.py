"""Names in a model file are data: nothing in them is executed, wherever they are shown or written."""

import importlib.util
import os

import onnx
import pytest
import torch
from onnx_frontend.build import perceptron
from safetensors.torch import load_file

import pccompile

NAMES = {
    "quotes": "a\"b'c",
    "newline": "x\nimport os; os.system('touch pwned')\n#",
    "carriage": "x\rimport os; os.system('touch pwned')\r#",
    "import": "__import__('os').system('touch pwned')",
    "escapes": "\x1b[31mred\x1b[0m\x07",
    "long": "n" * 100_000,
    "docstring": '"""\nimport os\nos.system("touch pwned")\n"""',
    "null": "a\x00b",
    "bidirectional": "ü\u202e\u2028x",
    "format": "{open('pwned','w')}%s{0}",
    "dots": "../../pwned",
    "empty": "",
}


def renamed(prefix: str) -> onnx.ModelProto:
    model = perceptron()
    graph = model.graph
    graph.name = prefix
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [prefix + i for i in node.input]
        node.output[:] = [prefix + o for o in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = prefix + value.name
    return model


@pytest.mark.quick(8)
@pytest.mark.parametrize("kind", NAMES)
def test_names(kind, run, folder) -> None:
    (folder / "h.onnx").write_bytes(renamed(NAMES[kind]).SerializeToString())
    result = run("h.onnx", "-o", "out")
    assert result.code == 0, result.err
    source = (folder / "out/h_pc.py").read_text()
    assert len(source) < 100_000 or kind == "long"
    assert not any(c in source for c in "\x00\x1b\r\x07\u202e\u2028")
    spec = importlib.util.spec_from_file_location("h_pc", folder / "out/h_pc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    params = load_file(folder / "out/h_pc.safetensors")
    for more in (["--explain"], ["--emit", "pc"], ["--verify"]):
        shown = run("h.onnx", *more)
        assert shown.code == 0, (more, shown.err)
        assert not any(c in shown.out + shown.err for c in "\x00\x1b\r\x07\u202e")
    x, y = torch.randn(3, 3), torch.randn(3, 2)
    inputs = pccompile.compile(folder / "h.onnx").graph.graph.inputs
    loss, gradients = module.step(params, {}, dict.fromkeys(inputs, x), [y])
    assert loss > 0
    assert set(gradients) == set(params)
    assert not os.path.exists("pwned")
    assert not os.path.exists("../../pwned")


def test_hostile_errors(run, folder) -> None:
    model = renamed("\x1b]0;title\x07\n")
    model.graph.node[0].op_type = "\x1b[2Jgone\n"
    (folder / "h.onnx").write_bytes(model.SerializeToString())
    result = run("h.onnx")
    assert result.code == 1
    assert "\x1b" not in result.err
    assert "\x07" not in result.err


def test_hostile_arguments(run) -> None:
    for target in (
        "\x1b[2J.onnx",
        "a\nb.onnx",
        "__import__('os'):system",
        "os:system;x",
        ":",
        "",
        "x" * 10_000 + ".onnx",
    ):
        result = run(target)
        assert result.code in (1, 2), target
        assert "\x1b" not in result.err
        assert "Traceback" not in result.err
