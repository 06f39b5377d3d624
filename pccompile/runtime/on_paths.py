"""A model that is captured along the path that Python takes, with a program for each path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pccompile.runtime.losses import loss_of
from pccompile.runtime.module import CompiledModule, Criterion
from pccompile.runtime.paths import TooManyPaths


class ModuleOnPaths(CompiledModule):
    """`model` with a program for each path that its calls have taken.

    by_autograd: calls whose path is one too many run as they are, with the gradients of autograd, and a warning says
    so. That is right for algorithms only whose gradients are backpropagation's; without it, such calls are refused.
    """

    by_autograd = False

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super()._called(args, kwargs)
        except TooManyPaths as e:
            if not self.by_autograd:
                raise
            self._refusals.tell(self.__dict__["model"], e, "and has the gradients of autograd")
            return self.__dict__["model"](*args, **kwargs)

    def loss_by(
        self, criterion: Criterion | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any
    ) -> Tensor:
        """As `loss`, by another criterion."""
        try:
            return super().loss_by(criterion, args, kwargs, target)
        except TooManyPaths:
            if not self.by_autograd:
                raise
            return loss_of(self.called(*args, **kwargs), criterion, target)

    def steady(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the path of a call rests on no random draw and on no number with a fraction."""
        assert self._paths is not None
        model: nn.Module = self.__dict__["model"]
        path = self._paths.of(model, args, kwargs)
        return not any(r.measured for r in path) and not self._paths.drawn(model, args, kwargs, path)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: how many paths there are, what they cost, and what the last program says."""
        paths = len({captured.imported.path for captured in self._cache.captures})
        said = f"captured along paths, {paths} up to now: each call runs forward once more to find the one it takes"
        return (said, *super().notes)
