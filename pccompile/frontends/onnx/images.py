"""Decoding of image files, by Pillow."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host
from pccompile.limits import spend


@operator("ImageDecoder")
def image_decoder(node: Node, data: Host) -> Tensor:
    """The pixels `[height, width, channel]` of an image file whose bytes `data` holds."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise CompileError("ImageDecoder needs Pillow", hint="pip install pillow") from None
    layout = node.get("pixel_format", "RGB")
    try:
        image = Image.open(io.BytesIO(data.array.tobytes()))
        spend("memory", 4 * image.width * image.height, node.op_type)
        pixels = np.array(image.convert("L" if layout == "Grayscale" else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise CompileError(f"the image cannot be decoded: {error}") from None
    if layout == "BGR":
        pixels = pixels[:, :, ::-1].copy()
    return torch.from_numpy(pixels[:, :, None] if layout == "Grayscale" else pixels)
