"""Small configurations of transformers' architectures, made from each one's default by rules on the names of sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from suites.tiny_overrides import OVERRIDES

WIDTH, HEADS, WORDS, IMAGE = 32, 4, 99, 32
Rule = int | Callable[[int], int]

GENERAL = {
    *("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "id2label", "label2id"),
    *("problem_type", "_name_or_path", "output_attentions", "chunk_size_feed_forward", "torch_dtype"),
    *("stage_names", "out_features", "out_indices"),
}
"""What every configuration has and what follows from the rest."""

TOKENS = ("pad", "bos", "eos", "decoder_start", "unk", "sep", "cls", "mask")
"""Special tokens, which get the first numbers of the vocabulary; those that stand for images and the like the last."""


def at_most(limit: int) -> Callable[[int], int]:
    """The rule that cuts a number down to `limit`."""
    return lambda value: min(value, limit)


def power_of_two(limit: int) -> Callable[[int], int]:
    """The rule that takes the power of two below a number and `limit`, so that widths are its multiples."""
    return lambda value: 1 << min(value, limit).bit_length() - 1 if value > 0 else value


RULES: tuple[tuple[str, Rule], ...] = (
    (r"(num_.*kv|key_value|kv).*heads", at_most(2)),
    (r"heads?$|heads_per_stage|num_heads|attention_heads", power_of_two(HEADS)),
    (r"experts_per_tok|moe_top_?k|top_k$|num_selected_experts|topk$", at_most(2)),
    (r"^(topk_group|n_shared_experts|first_k_dense_replace)$", at_most(1)),
    (r"^n_group$|num_expert_group", at_most(2)),
    (r"(^|_)n_?groups$", at_most(2)),
    (r"experts$|^num_local_experts", at_most(4)),
    (r"(expert|moe).*(size|dim)$", at_most(16)),
    (r"^num_feat_extract_layers$", at_most(3)),
    (
        r"(hidden|encoder|decoder|resampler|mamba|adapter|conv|lstm)_layers$|layers?$|_depth$|^depth$|num_blocks",
        at_most(2),
    ),
    (r"repeats|depths|blocks_per_stage|stage_num_blocks|num_residual_layers", at_most(1)),
    (r"codebook_size", power_of_two(WORDS)),
    (r"vocab_size|^vocab|num_embeddings|num_codevectors_per_group", at_most(WORDS)),
    (r"position|n_positions|max_seq|context_length|max_length", at_most(64)),
    (r"^(image_size|img_size|input_size|pretrain_image_size)$", IMAGE),
    (r"patch_size|patch_sizes", at_most(8)),
    (r"window", at_most(4)),
    (r"mel_bins|feature_size$|num_feats", at_most(16)),
    (r"mamba_d_head|mamba_headdim", at_most(2 * WIDTH // HEADS)),
    (r"lora_rank|state_size|d_state|time_step_rank|ssm_size", at_most(8)),
    (r"head_dim|head_size|d_kv|d_head|dim_head|headdim|rotary_dim", at_most(WIDTH // HEADS)),
    (r"intermediate|ffn|mlp_dim|d_ff|dff|n_inner|feedforward", at_most(2 * WIDTH)),
    (r"chunk_size$|block_size$", at_most(4)),
    (r"num_queries|num_query_tokens|num_latents|num_denoising", at_most(6)),
    (r"num_groups$|norm_groups|conv_pos_embedding_groups", at_most(2)),
    (r"num_conv_pos_embeddings", at_most(8)),
    (r"size$|dim$|dims$|width$|channels$|^d_|^n_embd$|d_model|sizes$|planes$|filters|units$|features$", at_most(WIDTH)),
)
KEPT = re.compile(r"kernel|stride|num_channels|^in_channels$|audio_channels|rate$|^scale|_dim_idx|pad(ding)?$|dilation")
SHORT = {"conv_dim": 3, "conv_stride": 3, "conv_kernel": 3}
"""Lists that are cut to their first entries, so that short sounds are long enough."""
FLAGS = {"use_cache": False, "apply_spec_augment": False, "layerdrop": 0.0}


def tiny(model_type: str) -> PreTrainedConfig:
    """The small configuration of an architecture."""
    kind = CONFIG_MAPPING[model_type]
    settings = _shrunk(kind().to_dict())
    return kind(**_merged(settings, OVERRIDES.get(model_type, {})))


def _merged(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, change in changes.items():
        if isinstance(change, Mapping) and isinstance(settings.get(name), dict):
            _merged(settings[name], change)
        elif change is ...:
            settings.pop(name, None)
        else:
            settings[name] = change
    return settings


def _shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    words = settings.get("vocab_size")
    last = min(WORDS, words) if isinstance(words, int) and words > 0 else WORDS
    for name, value in settings.items():
        if name in GENERAL or value is None:
            continue
        if isinstance(value, dict):
            found[name] = _shrunk(value) if "model_type" in value or name.endswith("config") else _rope(value)
        elif isinstance(value, str):
            found[name] = value
        elif name in FLAGS:
            found[name] = FLAGS[name]
        elif re.search(r"token_(id|index)$", name):
            found[name] = _token(name, value, last)
        elif re.search("drop", name) and isinstance(value, float):
            found[name] = 0.0
        else:
            found[name] = _size(name, value)
    for count in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers"):
        if isinstance(layers := settings.get(count), int):
            _cut_lists(settings, found, count, layers)
    heads, keys = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    if heads is not None and heads == keys:
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def _cut_lists(settings: Mapping[str, Any], found: dict[str, Any], count: str, layers: int) -> None:
    """Cut what is listed for each layer; where layers differ in kind, keep one of each."""
    lists = [k for k, v in settings.items() if isinstance(v, list | tuple) and len(v) == layers]
    kept = list(range(found[count]))
    for name in lists:
        if re.search("layer_types|layers_block_type", name):
            kinds = settings[name]
            first = sorted({kinds.index(kind) for kind in kinds})
            kept = first if len(first) > 1 else kept
            break
    for name in lists:
        found[name] = [_size(name, settings[name])[i] for i in kept]
    found[count] = len(kept) if lists else found[count]


def _rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Positions: where three axes share the frequencies of a head, shares of a small head."""
    half = WIDTH // HEADS // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    return {k: section if k == "mrope_section" else _rope(v) if isinstance(v, dict) else v for k, v in settings.items()}


def _token(name: str, value: Any, words: int) -> Any:
    if isinstance(value, list):
        return value[:1] and [_token(name, value[0], words)]
    kind = re.sub(r"_token_(id|index)$", "", name)
    if kind in TOKENS:
        return TOKENS.index(kind)
    return words - 1 - sum(map(ord, kind)) % 17 if isinstance(value, int) and value >= 0 else value


def _size(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        if value and all(type(v) is int for v in value) and max(value) > WIDTH and not KEPT.search(name):
            factor = max(value) / (2 * WIDTH) if len(set(value)) > 1 else max(value) / WIDTH
            value = [
                max(8, int(v / factor) // 8 * 8) if v > 4 and re.search(r"size|dim|channels|width", name) else v
                for v in value
            ]
        return type(value)(_size(name, v) if not _scaled(name, value) else v for v in value[: SHORT.get(name)])
    if type(value) is not int or KEPT.search(name):
        return value
    for pattern, rule in RULES:
        if re.search(pattern, name):
            return rule(value) if callable(rule) else rule
    return value


def _scaled(name: str, value: Any) -> bool:
    return len(set(map(str, value))) > 1 and bool(re.search(r"size|dim|channels|width", name)) and not KEPT.search(name)
