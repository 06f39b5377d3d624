"""Any sequence of calls, backward passes, detaching and resets of models with states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pccompile import PCModule
from validity.cells import (
    Lif,
    Lstm,
    Plain,
    Written,
)
from validity.states import agree, data, detached, pair

Make = Callable[[], nn.Module]


ACTIONS = ("call", "call", "call", "quiet", "backward", "detach", "reset")


@pytest.fixture(scope="module")
def followed() -> dict[Make, tuple[nn.Module, PCModule, list[Any]]]:
    made = {}
    for make in (Plain, Written, Lstm, Lif):
        eager, pc = pair(make)
        made[make] = eager, pc, [copy.deepcopy(m.__dict__) for m in eager.modules()]
    return made


@settings(max_examples=12, deadline=None, derandomize=True)
@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=9), which=st.integers(0, 3))
def test_any_sequence_of_actions(
    followed: dict[Make, tuple[nn.Module, PCModule, list[Any]]], actions: list[str], which: int
) -> None:
    """Whatever is done between calls, gradients and states are eager's; where eager raises, so does ours."""
    eager, pc, first = list(followed.values())[which]
    results = []
    for model, call in ((eager, eager), (pc.model, pc)):
        _restart(model, first)
        model.zero_grad()
        results.append(_act(model, call, actions, first))
    assert results[0] == results[1]
    agree(pc.model, eager, 1e-9)


def _restart(model: nn.Module, first: list[Any]) -> None:
    for module, attributes in zip(model.modules(), first, strict=True):
        for name, value in attributes.items():
            if not name.startswith("_") and name != "training":
                module.__dict__[name] = copy.deepcopy(value)
        for name, value in attributes["_buffers"].items():
            module._buffers[name] = copy.deepcopy(value)


def _act(model: nn.Module, call: Any, actions: list[str], first: list[Any]) -> list[str]:
    total, raised = [], []
    for action, x in zip(actions, data(len(actions)), strict=True):
        if action == "call":
            total.append(call(x).square().sum())
        elif action == "quiet":
            with torch.no_grad():
                call(x)
        elif action == "detach":
            detached(model)
        elif action == "reset":
            _restart(model, first)
        elif total and any(t.requires_grad for t in total):
            try:
                sum(total).backward()
            except RuntimeError as e:
                raised.append(str(e)[:40])
            total = []
            detached(model)
    return raised
