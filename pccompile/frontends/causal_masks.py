"""Masks of nn.Transformer, which it compares with a causal one to choose a kernel; a program takes any mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.modules import transformer

from pccompile.frontends.intercept import AuthorGradients
from pccompile.frontends.process import replaced


@contextmanager
def unread_masks(noticed: AuthorGradients) -> Iterator[None]:
    """Within: nn.TransformerEncoder and nn.TransformerDecoder do not read what is in a mask, unless it learns.

    A mask that is said to be causal takes another kernel; any other is applied as it is, which has the same result. It
    has a gradient then, and that of eager torch depends on what is in it.
    """
    compared = transformer._detect_is_causal_mask

    def declared(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        noticed.learning = noticed.learning or mask is not None
        if mask is not None and mask.requires_grad:
            return compared(mask, is_causal, size)
        return is_causal is True

    with replaced(transformer, _detect_is_causal_mask=declared):
        yield
