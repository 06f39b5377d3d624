"""Models of transformers whose Python keeps a cache or leaves out layers, compiled without an option."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pccompile

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_dynamo", "silent_logs")]


def step(called: Any, model: nn.Module, kwargs: dict[str, Any]) -> list[Tensor | None]:
    """Outputs and gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    tensors = [t for t in pytree.tree_leaves(called(**kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    torch.stack([t.square().sum() for t in tensors]).sum().backward()
    return [*(t.detach() for t in tensors), *(p.grad for p in model.parameters())]


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**size, **heads)).double().eval()


def cached(model: Any) -> dict[str, Any]:
    from transformers import DynamicCache

    torch.manual_seed(5)
    cache = DynamicCache(config=model.config)
    for i in range(2):
        cache.update(torch.randn(2, 1, 3, 4).double(), torch.randn(2, 1, 3, 4).double(), i)
    return {"input_ids": torch.arange(8).view(2, 4), "past_key_values": cache, "use_cache": True}


def speech() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    convolutions = {"conv_dim": (4, 4), "conv_stride": (3, 2), "conv_kernel": (6, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    dropped = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout"), 0.0)
    config = Wav2Vec2Config(**size, **convolutions, **positions, **dropped, layerdrop=0.3, mask_time_prob=0.0)
    return Wav2Vec2Model(config).double().train()


def wave(model: Any) -> dict[str, Any]:
    return {"input_values": torch.linspace(-1, 1, 240).sin().double().view(2, 120)}


def made_in_forward(model: Any) -> dict[str, Any]:
    return {"input_ids": torch.arange(8).view(2, 4), "use_cache": True}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "call", "limit"),
    [
        pytest.param(llama, made_in_forward, 1e-6, id="a cache that is made"),  # rotary embeddings are float32
        pytest.param(llama, cached, 1e-6, id="a cache that is given"),
        pytest.param(speech, wave, 1e-9, id="layers left out"),
    ],
)
def test_programs_of_transformers_learn_as_in_eager_torch(build: Any, call: Any, limit: float) -> None:
    torch.manual_seed(0)
    model = build()
    reference = copy.deepcopy(model)
    pc = pccompile.compile(model, (), call(model))
    for _ in range(2):
        given, own = call(model), call(model)
        found, expected = step(pc, model, given), step(reference, reference, own)
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert float((a - b).norm() / (b.norm() + 1e-3)) < limit
        if "past_key_values" in own:
            assert given["past_key_values"].get_seq_length() == own["past_key_values"].get_seq_length() == 7
