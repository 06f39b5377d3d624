"""What is one for the whole process while a model is captured: a lock, and attributes of torch replaced under it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_holders: list[int] = []
"""The thread that captures a model now, as often as it does."""
_ABSENT = object()


@contextmanager
def capturing() -> Iterator[None]:
    """Within: a model may be captured and compiled, by one thread at a time.

    torch.export and what is replaced for it are one for all threads, and Dynamo's tracing must not see it either: the
    lock is Dynamo's own. torch.inference_mode is left, and not torch.no_grad: no gradient could ever pass the tensors
    that a program keeps.
    """
    from torch._dynamo.convert_frame import compile_lock

    with compile_lock:
        learns = torch.is_grad_enabled()
        _holders.append(threading.get_ident())
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(learns):
                yield
        finally:
            _holders.pop()


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within: a class or module of torch has these attributes, for all threads; afterwards, what it had before.

    Raises RuntimeError where the thread is not `capturing`: another one could put back what this one relies on.
    """
    if threading.get_ident() not in _holders:
        raise RuntimeError(f"attributes of {owner.__name__} are replaced by a thread that does not hold the lock")
    before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            delattr(owner, name) if value is _ABSENT else setattr(owner, name, value)
