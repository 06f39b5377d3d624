"""What dividing a network between processes costs: messages and bytes a step, and time against one process.

python benchmarks/layer_parallel.py [--processes 2] [--layers 8] [--width 512] [--batch 128] [--repeats 5]

Each process is given one thread, by gloo on this machine. Times are medians of whole steps (prediction, inference,
learning), of the slowest process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

RUNS: dict[str, dict[str, Any]] = {
    "exact": {},
    "strict, 20 steps": {"algorithm": "strict", "steps": 20},
    "fixed-prediction, 20 steps": {"algorithm": "fixed-prediction", "steps": 20, "rate": 0.3, "lowering": "relax"},
}


def network(layers: int, width: int) -> nn.Module:
    """Layers of one width with tanh, and a readout of ten."""
    torch.manual_seed(0)
    hidden = (m for _ in range(layers - 1) for m in (nn.Linear(width, width), nn.Tanh()))
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def summed(output: Tensor, target: Tensor) -> Tensor:
    """The loss."""
    return F.cross_entropy(output, target, reduction="sum")


def seconds(step: Callable[[], Any], repeats: int) -> float:
    """The median time of a step, after one that is not counted."""
    step()
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def worker(rank: int, port: int, how: argparse.Namespace) -> None:
    """Measure each run in one process alone, then divided; rank 0 prints."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=how.processes)
    torch.manual_seed(1)
    x, y = torch.randn(how.batch, how.width), torch.randint(10, (how.batch,))
    for name, options in RUNS.items():
        alone = 0.0
        if rank == 0:
            pc = pccompile.compile(network(how.layers, how.width), (x,), loss=summed, **options)
            alone = seconds(lambda pc=pc: pc.loss(x, target=y).backward(), how.repeats)
        layers = pccompile.layer_parallel(network(how.layers, how.width), x, y, loss=summed, **options)
        dist.barrier()
        layers.learn(x, target=y)
        told = layers.sent.messages, layers.sent.bytes
        time_ = torch.tensor([seconds(lambda layers=layers: layers.learn(x, target=y), how.repeats), *told])
        every = [torch.zeros_like(time_) for _ in range(how.processes)]
        dist.all_gather(every, time_)
        if rank == 0:
            divided = max(float(t[0]) for t in every)
            messages, size = (sum(int(t[i]) for t in every) for i in (1, 2))
            cells = f"{messages:,} | {size / 1e6:.2f} MB | {1e3 * alone:.1f} ms | {1e3 * divided:.1f} ms"
            print(f"| {name} | {cells} | {divided / alone:.2f} |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("processes", 2), ("layers", 8), ("width", 512), ("batch", 128), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    how = parser.parse_args()
    print(f"{how.layers} layers of {how.width}, batch {how.batch}, {how.processes} processes of one thread\n")
    print(
        "| algorithm | messages a step | bytes a step | one process | divided | ratio |\n|---|---|---|---|---|---|",
        flush=True,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, how), nprocs=how.processes)


if __name__ == "__main__":
    main()
