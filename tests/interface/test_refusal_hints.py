"""What to do about a model that cannot be captured is said by cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def nested(**how: Any) -> Tensor:
    return torch.nested.nested_tensor([X[:2], X], **how)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "a nested tensor": (lambda: nn.Linear(4, 3), nested, "given a nested tensor.*pad the rows"),
    "a jagged tensor": (lambda: nn.Linear(4, 3), lambda: nested(layout=torch.jagged), "given a nested tensor"),
    "a script": (lambda: torch.jit.script(nn.Linear(4, 3)), lambda: X, "script of torch.jit.*was scripted"),
    "another width": (lambda: nn.Linear(5, 3), lambda: X, "example arguments do not fit the model"),
    "an attribute": (lambda: Calls(lambda m, x: m.gone(x)), lambda: X, "no attribute 'gone'.*call the model itself"),
    "a set": (lambda: Calls(lambda m, x: {1}), lambda: X, "<class 'set'>.*pass the tensors in it"),
    "NumPy": (lambda: Calls(lambda m, x: torch.from_numpy(x.numpy())), lambda: X, "in the place of NumPy"),
}


@pytest.mark.quick(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", CASES)
def test_the_hint_is_that_of_the_cause(what: str) -> None:
    model, argument, words = CASES[what]
    with pytest.raises(pccompile.CompileError, match=rf"(?s){words}"):
        pccompile.compile(model(), (argument(),), capture="export")
