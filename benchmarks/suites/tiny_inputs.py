"""Arguments for a forward pass of any architecture, by the names of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.exporters.utils import precompute_export_inputs

BATCH, TIME, FRAMES = 2, 7, 2
GRID = (1, 4, 4)
"""Frames, rows and columns of patches, where an image comes as a list of patches."""

Make = Callable[[Any, torch.Generator], Tensor]


def size_of(config: Any, *names: str, default: Any) -> Any:
    """The first of some settings that a configuration or one of its parts has."""
    for part in (config, *(getattr(config, p, None) for p in getattr(config, "sub_configs", {}))):
        for name in names:
            if isinstance(found := getattr(part, name, None), int | list | tuple):
                return found
    return default


def words(config: Any, draw: torch.Generator) -> Tensor:
    count = min(60, size_of(config, "vocab_size", default=60))
    return torch.randint(min(10, count - 1), count, (BATCH, TIME), generator=draw)


def image(config: Any, draw: torch.Generator) -> Tensor:
    size = size_of(config, "image_size", "img_size", "input_size", default=64)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = size_of(config, "num_channels", "in_channels", "in_chans", default=3)
    return torch.randn(BATCH, channels if isinstance(channels, int) else 3, height, width, generator=draw)


def frames(config: Any, draw: torch.Generator) -> Tensor:
    count = size_of(config, "num_frames", default=FRAMES)
    still = image(config, draw)
    return torch.randn(BATCH, count, *still.shape[1:], generator=draw)


def patches(config: Any, draw: torch.Generator) -> Tensor:
    """The entries of each patch of one image, one after the other."""
    size = size_of(config, "patch_size", default=8)
    size = size if isinstance(size, int) else size[-1]
    channels = size_of(config, "in_channels", "in_chans", "num_channels", default=3)
    entries = channels * size_of(config, "temporal_patch_size", default=1) * size * size
    return torch.randn(GRID[0] * GRID[1] * GRID[2], entries, generator=draw)


def mel(config: Any, draw: torch.Generator) -> Tensor:
    """Spectra `[batch, time, bins]`, or `[batch, bins, time]` where a model knows the greatest time."""
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "feature_projection_input_dim", "input_dim")
    bins = size_of(config, *names, default=16)
    if isinstance(most := getattr(config, "max_source_positions", None), int):
        return torch.randn(BATCH, bins, 2 * most, generator=draw)
    return torch.randn(BATCH, 32, bins, generator=draw)


def sound(config: Any, draw: torch.Generator) -> Tensor:
    return torch.randn(BATCH, 400, generator=draw)


def series(config: Any, draw: torch.Generator) -> Tensor:
    length = size_of(config, "context_length", default=16)
    channels = size_of(config, "num_input_channels", default=0)
    return torch.randn(*(BATCH, length, channels) if channels else (BATCH, length), generator=draw)


def grids(config: Any, draw: torch.Generator) -> Tensor:
    return torch.tensor([GRID])


MAKERS: dict[str, Make] = {
    "input_ids": words,
    "decoder_input_ids": words,
    "pixel_values": image,
    "pixel_values_videos": frames,
    "input_features": mel,
    "input_values": sound,
    "past_values": series,
    "grid_thw": grids,
    "hidden_states": patches,
    "bbox": lambda config, draw: torch.randint(0, 9, (BATCH, TIME, 4), generator=draw).cumsum(-1),
}


def arguments(model: nn.Module, draw: torch.Generator, own: Mapping[str, Make]) -> dict[str, Any]:
    """Keyword arguments: what `forward` requires, the model's main input, text beside an image, and a decoder's words.

    own: makers of this architecture, which are used beside the general ones and before them.
    """
    parameters = inspect.signature(model.forward).parameters
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    also = [model.main_input_name, "decoder_input_ids", "bbox", *own]
    if {"image", "text"} <= set(model.input_modalities):
        also += ["input_ids", "pixel_values"]
    names = [n for n in dict.fromkeys((*needed, *also)) if n in parameters]
    makers = {**MAKERS, **own}
    if "grid_thw" in names and "pixel_values" in names:
        makers["pixel_values"] = patches
    if missing := [n for n in names if n not in makers]:
        raise NotImplementedError(f"nothing makes {', '.join(missing)}")
    given = {n: made for n in names if (made := makers[n](model.config, draw)) is not None}
    if "input_ids" in given and "pixel_values" in given:
        given["input_ids"] = _with_places(model, given)
    with torch.no_grad():
        precompute_export_inputs(model, given)
    return given


def _with_places(model: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
    """The text, followed by a token for each vector that the model puts in the place of its image."""
    token = size_of(model.config, "image_token_id", "image_token_index", default=None)
    if not isinstance(token, int) or not hasattr(model, "get_image_features"):
        return given["input_ids"]
    with torch.no_grad():
        result = model.get_image_features(pixel_values=given["pixel_values"])
    vectors = [x for x in pytree.tree_leaves(getattr(result, "pooler_output", result)) if isinstance(x, Tensor)]
    count = sum(x.shape[:-1].numel() for x in vectors) // BATCH
    return torch.cat([given["input_ids"], torch.full((BATCH, count), token)], 1)
