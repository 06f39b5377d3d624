"""What is one for the whole process while a model is captured: a lock, and what is patched under it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()
"""Held while a model is captured and compiled: torch.export and what is patched for it are one for all threads."""


@contextmanager
def capturing() -> Iterator[None]:
    """Within: a model may be captured and compiled, by one thread at a time.

    torch.inference_mode is left, and not torch.no_grad: no gradient could ever pass the tensors that a program keeps.
    """
    with _LOCK:
        learns = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learns):
            yield
