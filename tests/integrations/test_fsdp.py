"""FullyShardedDataParallel and fully_shard around a compiled model, on the CPU with gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import pccompile


class Net(nn.Module):
    """A parameter of its own beside those of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)) * self.gain)


def flat(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def original(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def sharded(model: nn.Module) -> nn.Module:
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {"flat": flat, "original": original, "fully_shard": sharded}


def losses(wrap: Callable[[nn.Module], nn.Module], compiled: bool) -> list[float]:
    """The losses of five steps."""
    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(8, 6), torch.randint(3, (8,))
    run = wrap(pccompile.compile(model, (x,)) if compiled else model)
    optimizer, found = torch.optim.SGD(run.parameters(), 0.5), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def worker(rank: int, world: int, port: int, wrapper: str, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        curves = [losses(WRAPPERS[wrapper], compiled) for compiled in (False, True)]
        if rank == 0:
            results.put(curves)
    except pccompile.CompileError as e:
        if rank == 0:
            results.put(str(e))
    finally:
        dist.destroy_process_group()


@pytest.mark.quick(1)
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("wrapper", ["flat", pytest.param("original", marks=pytest.mark.slow), "fully_shard"])
def test_the_curve_is_that_of_eager(wrapper: str, world: int) -> None:
    found = _run(wrapper, world)
    assert isinstance(found, list), found
    eager, compiled = found
    assert eager[-1] < eager[0]
    assert compiled == pytest.approx(eager, rel=1e-5)


def _run(wrapper: str, world: int) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, args=(world, port, wrapper, results), nprocs=world)
    return results.get()
