"""The paths of a model whose Python decides by numbers: which one a call takes, and how many there may be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.paths import Reading, path_of
from pccompile.runtime.trial_run import fresh, has_hooks, untouched

MEASURED = 8
"""So many paths are captured on which Python reads a number with a fraction: each number is a path of its own."""
MOST = 64
"""So many paths of other kinds are captured."""


Path = tuple[Reading, ...]
"""What Python reads in a call, in its order; nothing where paths are not followed."""


class TooManyPaths(CompileError):
    """A call takes one more path than are captured."""


class Paths:
    """Finds the path of each call by running the model once, which leaves it as it was."""

    def __init__(self) -> None:
        self._warned = False

    def of(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Path:
        """What Python reads in this call. Raises CompileError where the model cannot be run for that."""
        if has_hooks(model):
            what = f"{type(model).__name__} has hooks, which finding the path of a call would run once more"
            raise CompileError(what, hint='remove them, or use capture="pieces"')
        return self._path(model, args, kwargs, torch.get_rng_state())

    def drawn(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: Path) -> bool:
        """Whether a call takes another path than a known one where other random numbers are drawn."""
        for seed in (1, 2, 3):
            if self._path(model, args, kwargs, torch.Generator().manual_seed(seed).get_state()) != known:
                return True
        return False

    def _path(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: Tensor) -> Path:
        """The path at a state of torch's generator: that of the call to come, as a rule."""
        own = fresh(args, kwargs)
        with untouched(model), torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
            torch.set_rng_state(state)
            return path_of(lambda: model(*own[0], **own[1]))

    def admit(self, path: Path, model: nn.Module, known: Sequence[Path]) -> None:
        """Raise CompileError where one more path is one too many; warn once of those that each number opens."""
        paths = set(known) - {path}
        name, measured = type(model).__name__, next((r for r in path if r.measured), None)
        others = sum(any(r.measured for r in p) for p in paths)
        if measured and others and not self._warned:
            self._warned = True
            warnings.warn(f"{name}: {_each(measured.where)}, {MEASURED} at most", stacklevel=2)
        if measured and others >= MEASURED:
            raise TooManyPaths(f"{name}: {_each(measured.where)}, and there have been {MEASURED}", measured.where, HINT)
        if len(paths) >= MOST:
            where = path[-1].where if path else Location()
            raise TooManyPaths(f"{name} has taken {MOST} paths, and takes another one", where, HINT)


HINT = 'compare tensors (`if x.norm() < tol`) and not numbers (`.item()`), or use capture="pieces"'


def _each(where: Location) -> str:
    return f"each number that Python reads at {where} is a path of its own"
