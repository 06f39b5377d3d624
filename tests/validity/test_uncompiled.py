"""Without gradients, a model that cannot be compiled runs as it is, and says so."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import pccompile
from pccompile import CompileError


class Branches(nn.Module):
    """Batch norm, and a branch on what is in a buffer while `branching`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.branching = nn.Linear(3, 3), nn.BatchNorm1d(3), False

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.fc(x))
        return y * 2 if self.branching and y.sum() > 0 else y


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def pair() -> tuple[pccompile.PCModule, nn.Module]:
    torch.manual_seed(0)
    eager = Branches()
    pc = pccompile.compile(copy.deepcopy(eager), (X,))
    eager.branching = pc.model.branching = True
    return pc, eager


def test_it_warns_once_and_names_the_reason() -> None:
    pc, eager = pair()
    with torch.no_grad():
        with pytest.warns(
            UserWarning, match=r"Branches runs uncompiled under torch\.no_grad: .*cannot capture Branches"
        ):
            found = pc(X)
        torch.testing.assert_close(found, eager(X))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(pc(X), eager(X))
    with pytest.raises(CompileError, match="cannot capture Branches"):
        pc(X)


def test_each_copy_warns_for_itself() -> None:
    pc, _ = pair()
    for twin in (pc, copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))):
        with torch.no_grad(), pytest.warns(UserWarning, match="runs uncompiled"):
            twin(X)


def test_statistics_are_updated_as_in_eager() -> None:
    pc, eager = pair()
    with pytest.warns(UserWarning, match="runs uncompiled"):
        update_bn([X, X + 1], pc)
    update_bn([X, X + 1], eager)
    for a, b in zip(pc.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_can_be_compiled_says_nothing() -> None:
    pc, eager = pair()
    eager.branching = pc.model.branching = False
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(pc(X), eager(X))
