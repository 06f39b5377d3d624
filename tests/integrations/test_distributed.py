"""torch.distributed around a compiled model: two processes by gloo, against one process that sees the whole batch."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import pccompile

pytestmark = pytest.mark.slow
WORLD, STEPS = 2, 4


class Net(nn.Module):
    """Two layers and a parameter beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)) * self.gain)


def setting() -> tuple[Net, Tensor, Tensor]:
    """The same network and batch in each process, in float64."""
    torch.manual_seed(0)
    return Net().double(), torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))


def half(t: Tensor) -> Tensor:
    return t.chunk(WORLD)[dist.get_rank()]


def curve(run: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> list[float]:
    """The norm of all parameters after each step."""
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(run(x), y).backward()
        optimizer.step()
        found.append(sum(float(p.detach().square().sum()) for p in run.parameters()))
    return found


def alone(**how: Any) -> list[float]:
    """The curve of one process on the whole batch, by eager torch."""
    model, x, y = setting()
    return curve(model, torch.optim.SGD(model.parameters(), 0.5), x, y)


def ddp(**how: Any) -> list[float]:
    model, x, y = setting()
    run = DistributedDataParallel(pccompile.compile(model, (x,)), **how)
    return curve(run, torch.optim.SGD(run.parameters(), 0.5), half(x), half(y))


def zero() -> list[float]:
    model, x, y = setting()
    run = DistributedDataParallel(pccompile.compile(model, (x,)))
    return curve(run, ZeroRedundancyOptimizer(run.parameters(), torch.optim.SGD, lr=0.5), half(x), half(y))


def loss_of_module() -> list[float]:
    """`ddp.module.loss` goes around DDP: each process would learn its own half."""
    model, x, y = setting()
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=F.cross_entropy)
    run = DistributedDataParallel(pc)
    run.module.loss(half(x), target=half(y)).backward()
    return []


class Learner(nn.Module):
    """Returns its loss, so that DDP sees the call."""

    def __init__(self, pc: nn.Module) -> None:
        super().__init__()
        self.pc = pc

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.pc.loss(x, target=y)


def loss_within() -> list[float]:
    """Strict inference by the loss, called through DDP: gradients are averages over the processes."""
    model, x, y = setting()
    loss = lambda out, target: F.cross_entropy(out, target, reduction="sum")  # noqa: E731
    pc = pccompile.compile(model, (x,), algorithm="strict", steps=10, loss=loss)
    pc.loss(x, target=y).backward()
    expected = [p.grad / WORLD for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    run = DistributedDataParallel(Learner(pc))  # kept by a name: its hooks live as long as it does
    run(half(x), half(y)).backward()
    return [float((p.grad - g).norm() / g.norm()) for p, g in zip(model.parameters(), expected, strict=True)]


def linearised() -> list[float]:
    """Strict inference under DDP: its errors are clamped by the loss outside, and gradients are averages."""
    model, x, y = setting()
    how = {"algorithm": "strict", "outside_loss": "linearise", "steps": 10}
    loss = lambda out, target: F.mse_loss(out, target, reduction="sum")  # noqa: E731
    target = F.one_hot(y, 3).double()
    pc = pccompile.compile(model, (x,), loss=loss, **how)
    loss(pc(x), target).backward()
    expected = [p.grad / WORLD for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    run = DistributedDataParallel(pc)
    loss(run(half(x)), half(target)).backward()
    return [float((p.grad - g).norm() / g.norm()) for p, g in zip(model.parameters(), expected, strict=True)]


def saved() -> list[float]:
    """A distributed checkpoint of a compiled model, loaded into another one and into the plain model."""
    model, x, _ = setting()
    pc = pccompile.compile(model, (x,))
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    checkpoint.save({"model": get_model_state_dict(pc)}, checkpoint_id=folder[0])
    differences = []
    for compiled in (True, False):
        torch.manual_seed(1)
        other: nn.Module = Net().double()
        other = pccompile.compile(other, (x,)) if compiled else other
        state = {"model": get_model_state_dict(other)}
        checkpoint.load(state, checkpoint_id=folder[0])
        set_model_state_dict(other, state["model"])
        differences.append(float((other(x) - model(x)).detach().abs().max()))
    return differences


def pipelined(schedule: Any) -> list[float]:
    """A compiled module for each stage, in four microbatches."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(6, 8), nn.Tanh()).double(), nn.Linear(8, 3).double()]
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    F.cross_entropy(nn.Sequential(*parts)(x), y).backward()
    rank = dist.get_rank()
    mine = parts[rank]
    expected = [p.grad.clone() for p in mine.parameters() if p.grad is not None]
    mine.zero_grad()
    example = (x, torch.randn(8, 8, dtype=torch.float64, requires_grad=True))[rank][:2]
    stage = PipelineStage(pccompile.compile(mine, (example,)), rank, WORLD, torch.device("cpu"))
    run = schedule(stage, n_microbatches=4, loss_fn=F.cross_entropy)
    run.step(x) if rank == 0 else run.step(target=y)
    found = [float((p.grad - g).abs().max()) for p, g in zip(mine.parameters(), expected, strict=True)]
    every: list[Any] = [None] * WORLD
    dist.all_gather_object(every, found)
    return [difference for mine in every for difference in mine]


def tensor_parallel() -> list[float]:
    """Parameters that are DTensors."""
    model, x, y = setting()
    mesh = init_device_mesh("cpu", (WORLD,))
    sharded = nn.Sequential(model.fc1, nn.Tanh(), model.fc2)
    parallelize_module(sharded, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    pc = pccompile.compile(sharded, (x,))
    F.cross_entropy(pc(x), y).backward()
    return []


CASES: dict[str, Callable[[], list[float]]] = {
    "alone": alone,
    "ddp": ddp,
    "ddp, static graph": lambda: ddp(static_graph=True),
    "ddp, unused parameters": lambda: ddp(find_unused_parameters=True),
    "ddp, buckets as views": lambda: ddp(gradient_as_bucket_view=True),
    "zero": zero,
    "ddp.module.loss": loss_of_module,
    "strict under ddp": linearised,
    "strict by a loss under ddp": loss_within,
    "checkpoint": saved,
    "gpipe": lambda: pipelined(ScheduleGPipe),
    "1f1b": lambda: pipelined(Schedule1F1B),
    "tensor parallelism": tensor_parallel,
}


def worker(rank: int, port: int, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            found[name] = case()
        except Exception as e:
            found[name] = f"{type(e).__name__}: {e}"
        dist.barrier()
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, args=(port, results), nprocs=WORLD)
    return results.get()


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("ddp,") or n in ("ddp", "zero")])
def test_two_processes_learn_what_one_does(found: dict[str, Any], name: str) -> None:
    assert found["alone"][-1] != found["alone"][0]
    assert found[name] == pytest.approx(found["alone"], rel=1e-7)


@pytest.mark.parametrize("name", ["strict under ddp", "strict by a loss under ddp"])
def test_strict_under_ddp_averages(found: dict[str, Any], name: str) -> None:
    assert max(found[name]) < 1e-7


def test_a_loss_around_ddp_is_refused(found: dict[str, Any]) -> None:
    assert "DistributedDataParallel" in found["ddp.module.loss"]


def test_a_checkpoint_is_the_models(found: dict[str, Any]) -> None:
    assert found["checkpoint"] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_pipeline_has_the_gradients_of_the_whole(found: dict[str, Any], schedule: str) -> None:
    assert len(found[schedule]) == 4
    assert max(found[schedule]) < 1e-7


def test_tensor_parallelism_is_refused(found: dict[str, Any]) -> None:
    assert found["tensor parallelism"].startswith("CompileError: ")
    assert "DTensor" in found["tensor parallelism"]
