"""What the general rules cannot know about single architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from suites.tiny_inputs import BATCH, Make, frames

_MROPE = {"rope_parameters": {"mrope_section": [2, 1, 1]}}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2}
_FLAT = {"per_layer_config": ...}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "granitemoehybrid": _MAMBA,
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "mamba2": {"head_dim": 16, "num_heads": 4, "expand": 2},
    "zamba2": {"mamba_headdim": 16},
    **dict.fromkeys(("diffusion_gemma", "embedding_gemma2_text", "gemma4_text", "gemma4_unified_text"), _FLAT),
    **dict.fromkeys(("dots3_note_text",), _FLAT),
    **dict.fromkeys(("glm4v_text", "glm_image_text", "glm_ocr_text", "qwen2_5_vl_text", "qwen2_vl_text"), _MROPE),
    "glm4v_moe_text": {"rope_parameters": {"mrope_section": [1, 1, 0]}},
    "hrm_text": {"H_cycles": 2, "L_cycles": 1, "L_bp_cycles": [1, 1]},
    "xlnet": {"d_head": 8},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 2},
    "gemma3": {"mm_tokens_per_image": 4},
    "mobilevitv2": {"image_size": 64},
    "nemotron": {"num_key_value_heads": 2},
    "blip-2": {"image_token_index": 93, "num_query_tokens": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
}
"""Settings by model type; `...` leaves one out."""


def normal(*shape: int) -> Make:
    """Standard normal numbers."""
    return lambda config, draw: torch.randn(BATCH, *shape, generator=draw)


_VIDEO = (
    *("idefics2", "idefics3", "smolvlm", "timesformer", "videomae", "vivit", "xclip", "ultravbert"),
    "modernvbert",
)
_EPISODE = {
    "states": normal(5, 17),
    "actions": normal(5, 4),
    "returns_to_go": normal(5, 1),
    "timesteps": lambda config, draw: torch.arange(5).repeat(BATCH, 1),
}

INPUTS: dict[str, Mapping[str, Make]] = {
    **{name: {"pixel_values": frames} for name in _VIDEO},
    "audio-spectrogram-transformer": {"input_values": normal(64, 16)},
    "dac": {"input_values": normal(1, 1600)},
    "decision_transformer": _EPISODE,
    "glmasr_encoder": {"input_features": normal(16, 32)},
    "lxmert": {"visual_feats": normal(5, 32), "visual_pos": normal(5, 4)},
    "moonshine": {"input_values": normal(2000)},
    "perceiver": {"inputs": normal(9, 32)},
    "speech_to_text": {"input_features": normal(32, 80)},
    "voxtral_realtime_encoder": {"input_features": normal(16, 32)},
    "wav2vec2-bert": {"input_features": normal(24, 32)},
}
"""Makers of inputs by model type."""
