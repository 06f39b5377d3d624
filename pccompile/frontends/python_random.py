"""What forward does to generators and no program repeats: draws of Python's and NumPy's, seeds of torch's."""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from pccompile.diagnostics import CaptureError, Collector, CompileError
from pccompile.frontends.places import SKIPPED, leaves_of
from pccompile.frontends.process import replaced

PYTHON = "Python's random"
SEEDS = ("manual_seed", "seed", "set_rng_state")
"""Functions of torch that set the state of its generator; fork_rng calls the last of them."""
GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, np.random.BitGenerator, torch.Generator)


@dataclass(frozen=True)
class _Generator:
    """A generator: what a user calls it, what it is at now, and how it is put back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


@contextmanager
def refuse_draws(model: nn.Module) -> Iterator[None]:
    """Within, `model` is traced. Raises CompileError where forward has drawn; the generators are then put back.

    So it does where forward has seeded torch's own generator: tracing draws nothing from that.
    """
    generators = list(_generators(model))
    before = [g.read() for g in generators]
    drawn: list[str] = []
    stream = torch.get_rng_state()
    with _seeds() as seeded:
        try:
            yield
        finally:
            if seeded:
                torch.default_generator.set_state(stream)
            for generator, state in zip(generators, before, strict=True):
                if not _same(generator.read(), state):
                    generator.write(state)
                    drawn.append(generator.name)
    problems, hint = Collector(), "draw it by torch (torch.rand, torch.randint), or pass it as an argument"
    for name in drawn:
        problems.add(f"forward draws a number from {name}, or seeds it: it would be the same at each call", hint=hint)
    for name in dict.fromkeys(seeded):
        what = f"forward calls torch.{name}, so that it draws the same at each call, which the program would not"
        problems.add(what, hint="seed before the call, or make what is drawn a buffer")
    by_python = drawn == [PYTHON] and not seeded  # Dynamo leaves these draws to Python
    problems.raise_if_any(CaptureError if by_python else CompileError)


@contextmanager
def _seeds() -> Iterator[list[str]]:
    """Within, what sets the state of torch's generator is listed where others than torch call it, in this thread."""
    called: list[str] = []
    noticed = functools.partial(_noticed, called, threading.get_ident())
    with ExitStack() as patches:
        for module, name in ((m, n) for m in (torch, torch.random) for n in SEEDS if hasattr(m, n)):
            patches.enter_context(replaced(module, **{name: noticed(name, getattr(module, name))}))
        patches.enter_context(replaced(torch, default_generator=_Watched(torch.default_generator, noticed)))
        yield called


class _Watched:
    """torch's generator, for those who call its methods by themselves."""

    def __init__(self, generator: torch.Generator, noticed: Callable[[str, Any], Any]) -> None:
        self._generator, self._noticed = generator, noticed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._generator, name)
        is_seed = name in ("manual_seed", "seed", "set_state")
        return self._noticed(f"default_generator.{name}", found) if is_seed else found


def _noticed(called: list[str], thread: int, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which says in `called` that others than torch have called it in this thread."""

    def noticed(*args: Any, **kwargs: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in ("torch.random", "contextlib", __name__):
            frame = frame.f_back
        by_others = frame is not None and not str(frame.f_globals.get("__name__")).startswith("torch.")
        if by_others and threading.get_ident() == thread:
            called.append(name)
        return function(*args, **kwargs)

    return noticed


def _generators(model: nn.Module) -> Iterator[_Generator]:
    """The generators of Python and NumPy, and those that modules have as attributes, torch's own among them."""
    yield _Generator(PYTHON, random.getstate, random.setstate)
    yield _Generator("numpy.random", lambda: np.random.get_state(legacy=False), np.random.set_state)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            for leaf in () if name in SKIPPED else leaves_of(value)[0]:
                if isinstance(leaf, GENERATORS) and id(leaf) not in seen:
                    seen.add(id(leaf))
                    yield _held(leaf, f"{path}.{name}" if path else name)


def _held(generator: Any, name: str) -> _Generator:
    label = f"{name}, a {type(generator).__name__}"
    match generator:
        case random.Random():
            return _Generator(label, generator.getstate, generator.setstate)
        case np.random.RandomState():
            return _Generator(label, lambda: generator.get_state(legacy=False), generator.set_state)
        case torch.Generator():
            return _Generator(label, lambda: generator.get_state().numpy(), functools.partial(_set_state, generator))
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return _Generator(label, lambda: bits.state, lambda state: setattr(bits, "state", state))


def _set_state(generator: torch.Generator, state: Any) -> None:
    generator.set_state(torch.from_numpy(state))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)
