"""A compiled model copied, stored, changed in its parts, and in several processes."""

from __future__ import annotations

import copy
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.models import ConvNet, distance, gradients, half_squares, mlp, seeded
from helpers.training import data, grads, pair
from torch import Tensor, nn

import pccompile


def test_a_deepcopy_learns_apart() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x)
    twin = copy.deepcopy(pc)
    wanted = gradients(pc, half_squares(pc(x)))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert distance(gradients(pc, half_squares(pc(x))), wanted) == 0
    assert not twin(x).any()
    assert not set(map(id, pc.parameters())) & set(map(id, twin.parameters()))


def test_a_pickle_comes_back_with_the_same_gradients() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x, algorithm="fixed-prediction", steps=3)
    twin = pickle.loads(pickle.dumps(pc))
    assert distance(gradients(twin, half_squares(twin(x))), gradients(pc, half_squares(pc(x)))) == 0


def test_a_state_dict_goes_both_ways(tmp_path: Path) -> None:
    x = data(6, 3, 8, 8)
    trained = pccompile.compile(seeded(ConvNet), (x,))
    trained(x)
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    plain = seeded(ConvNet, seed=1)
    plain.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(plain.eval()(x), trained.eval()(x))
    other = pccompile.compile(seeded(ConvNet, seed=2), (x,))
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other.eval()(x), plain(x))


def test_assigned_parameters_are_used() -> None:
    """load_state_dict(assign=True) replaces the Parameter objects."""
    x = data(5, 4)
    _, pc = pair(mlp, x)
    plain = seeded(mlp, seed=5)
    pc.load_state_dict(copy.deepcopy(plain.state_dict()), assign=True)
    torch.testing.assert_close(pc(x), plain(x))
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12


def test_a_replaced_layer_is_used() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x)
    pc.model[0] = seeded(lambda: nn.Linear(4, 6), seed=5)
    torch.testing.assert_close(pc(x), pc.model(x))


def test_functional_call_replaces_the_parameters() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    other = {name: 2 * p.detach() for name, p in plain.named_parameters()}
    torch.testing.assert_close(*(torch.func.functional_call(m, other, (x,)) for m in (pc, plain)))


@pytest.mark.parametrize("what", ["weights", "input"])
def test_a_tensor_that_changes_between_forward_and_backward_is_an_error(what: str) -> None:
    """As with autograd: its old numbers are needed and gone."""
    x = data(5, 4)
    _, pc = pair(mlp, x)
    loss = half_squares(pc(x))
    with torch.no_grad():
        (pc.model[2].weight if what == "weights" else x).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def _worker(rank: int, meeting: Path, found: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    pc = pccompile.compile(seeded(mlp), (torch.randn(6, 4, dtype=torch.float64),))
    model = nn.parallel.DistributedDataParallel(pc)
    model(torch.full((6, 4), rank + 1.0, dtype=torch.float64)).square().sum().backward()
    found[rank] = grads(pc)
    dist.destroy_process_group()


def test_data_parallel_training_averages_the_gradients(tmp_path: Path) -> None:
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(_worker, (tmp_path / "meeting", found), nprocs=2)
        ranks = [found[0], found[1]]
    plain = seeded(mlp)
    (sum(plain(torch.full((6, 4), r, dtype=torch.float64)).square().sum() for r in (1.0, 2.0)) / 2).backward()
    for rank in ranks:
        assert distance(rank, grads(plain)) < 1e-12


def test_the_sweep_frees_what_prediction_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of memory is that of backpropagation: autograd holds nothing that inference has read already."""
    pc, x = pccompile.compile(ConvNet(), (torch.randn(2, 3, 8, 8),)), torch.randn(2, 3, 8, 8)
    runtime = pc.prepare((x,))
    sweep, alive = runtime.function("infer_and_learn"), []

    def watched(params: Any, context: list[Any], errors: Any) -> Any:
        saved = [weakref.ref(c) for c in context if isinstance(c, Tensor) and c.shape != x.shape]
        found = sweep(params, context, errors)
        alive.append((len(saved), sum(s() is not None for s in saved)))
        return found

    monkeypatch.setitem(runtime._scope, "infer_and_learn", watched)
    half_squares(pc(x)).backward()
    half_squares(pc(x)).backward(retain_graph=True)
    (before, after), (_, kept) = alive
    assert (before > 5, after, kept) == (True, 0, before)
