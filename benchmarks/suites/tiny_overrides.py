"""What the general rules cannot know about single architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suites.tiny_inputs import Make, frames

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
}
"""Settings by model type; `...` leaves one out."""

_VIDEO = ("idefics2", "idefics3", "smolvlm", "timesformer", "videomae", "vivit", "xclip", "ultravbert", "modernvbert")

INPUTS: dict[str, Mapping[str, Make]] = {name: {"pixel_values": frames} for name in _VIDEO}
"""Makers of inputs by model type."""

LEFT_OUT: dict[str, str] = {}
