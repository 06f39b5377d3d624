"""Recurrent layers while a model is captured: one call each, so that capture takes as long for any number of steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from pccompile.frontends.process import replaced
from pccompile.ops.recurrent_operators import OPERATORS


@contextmanager
def whole_recurrences() -> Iterator[None]:
    """Within: what this thread runs through torch's recurrent functions is recorded as one call of `OPERATORS`."""
    thread = threading.get_ident()

    def whole(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if kwargs or threading.get_ident() != thread or not _plain(args):
                return original(*args, **kwargs)
            input, hx, params, *options = args
            return ours(input, list(hx) if isinstance(hx, tuple) else hx, list(params), *options)

        return run

    with ExitStack() as stack:
        for name, ours in OPERATORS.items():
            for owner in (torch, torch._VF):
                stack.enter_context(replaced(owner, **{name: whole(getattr(owner, name), ours)}))
        yield


def _plain(args: tuple[Any, ...]) -> bool:
    """Whether these are a padded sequence, first states, parameters and options, and not a packed sequence."""
    return len(args) == 9 and isinstance(args[0], FakeTensor) and isinstance(args[3], bool)
