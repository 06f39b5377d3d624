"""Files that onnxruntime's optimisers wrote: loaded, compared, and differentiated."""

from __future__ import annotations

import io
import warnings
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import pccompile
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx


class Block(nn.Module):
    """A layer of a transformer, written out."""

    def __init__(self, width: int = 32, count: int = 2) -> None:
        super().__init__()
        self.count = count
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.count, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        x = self.first(x + self.out((weights @ v).transpose(1, 2).flatten(2)))
        return self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )


NETWORKS = {
    "transformer": (
        lambda: nn.Sequential(Block(), Block()),
        (2, 7, 32),
        {"SkipLayerNormalization", "FusedMatMul", "Gelu"},
    ),
    "convolutional": (convolutional, (2, 3, 16, 16), {"FusedConv", "FusedGemm"}),
}


def exported(network: nn.Module, inputs: tuple[torch.Tensor, ...], **settings: object) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, inputs, buffer, dynamo=False, opset_version=17, **settings)
    return buffer.getvalue()


def optimised(content: bytes, path: str, level: str) -> onnxruntime.InferenceSession:
    """The session that has written its optimised graph to `path`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = path
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options)


@pytest.mark.parametrize("name", NETWORKS)
def test_optimised_graphs(name, tmp_path):
    make, shape, fused = NETWORKS[name]
    torch.manual_seed(0)
    network, x = make().eval(), torch.randn(shape, requires_grad=True)
    path = str(tmp_path / "optimised.onnx")
    session = optimised(exported(network, (x.detach(),)), path, "ORT_ENABLE_EXTENDED")
    kinds = Counter(n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft")
    assert set(kinds) >= fused
    pc = pccompile.compile(path, (x,))
    y = pc(x)
    (expected,) = session.run(None, {session.get_inputs()[0].name: x.detach().numpy()})
    torch.testing.assert_close(y.detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(y)
    (found,) = torch.autograd.grad((y * weights).sum(), x)
    (wanted,) = torch.autograd.grad((network(x) * weights).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_layouts_of_one_processor_are_refused(tmp_path):
    path = str(tmp_path / "optimised.onnx")
    optimised(exported(convolutional().eval(), (torch.randn(2, 3, 16, 16),)), path, "ORT_ENABLE_ALL")
    if not any(n.domain == "com.microsoft.nchwc" for n in onnx.load(path).graph.node):
        pytest.skip("onnxruntime has no layout of its own for this processor")
    with pytest.raises(CompileError, match="ORT_ENABLE_EXTENDED"):
        load_onnx(path)


class Hidden(nn.Module):
    """BERT's last hidden states."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        settings = BertConfig(vocab_size=50, max_position_embeddings=32, attn_implementation="eager", **sizes)
        self.bert = BertModel(settings, add_pooling_layer=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        return self.bert(input_ids=ids, attention_mask=mask, token_type_ids=segments)[0]


def test_what_the_transformer_optimiser_writes(tmp_path):
    from onnxruntime.transformers.optimizer import optimize_model

    torch.manual_seed(0)
    network = Hidden().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # exporters merge equal weights
            parameter.add_(0.02 * torch.randn_like(parameter))
    ids, mask, segments = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64), torch.zeros(2, 7).long()
    mask[1, 5:], segments[:, 3:] = 0, 1
    inputs = (ids, mask, segments)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "time"} for name in names}
    (tmp_path / "bert.onnx").write_bytes(exported(network, inputs, input_names=names, dynamic_axes=axes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = optimize_model(str(tmp_path / "bert.onnx"), "bert", num_heads=2, hidden_size=32, opt_level=0)
    kinds = Counter(n.op_type for n in made.model.graph.node if n.domain == "com.microsoft")
    assert set(kinds) == {"Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"}
    made.save_model_to_file(str(tmp_path / "optimised.onnx"))
    module = load_onnx(tmp_path / "optimised.onnx")
    given = dict(zip(names, inputs, strict=True))
    arguments = tuple(given[t.name].to(t.dtype) for t in module.input_types)
    y = pccompile.compile(module, arguments)(*arguments)
    network.eval()
    expected = network(*inputs)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    found, wanted = dict(module.named_parameters()), dict(network.named_parameters())
    shared = set(found) & set(wanted)
    assert {"bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias"} <= shared
    for name in shared:
        torch.testing.assert_close(found[name].grad, wanted[name].grad, rtol=1e-3, atol=1e-4)
