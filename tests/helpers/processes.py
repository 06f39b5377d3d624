"""Processes that talk by gloo on this machine."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Cases = Callable[[], Mapping[str, Callable[[], Any]]]
"""A function of a module, which returns what every process is to call."""
PATIENCE = datetime.timedelta(minutes=5)


def _worker(rank: int, port: int, world: int, cases: Cases, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=PATIENCE)
    for name, case in cases().items():
        try:
            found = case()
        except Exception as e:
            found = f"{type(e).__name__}: {e}"
        every: list[Any] = [None] * world
        dist.all_gather_object(every, found)
        if rank == 0:
            results.put((name, every))
    dist.destroy_process_group()


def in_processes(world: int, cases: Cases) -> dict[str, list[Any]]:
    """What each of `world` processes has returned for every case, by rank; of an exception its text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.Queue()
        mp.spawn(_worker, args=(port, world, cases, results), nprocs=world)
        return dict(results.get() for _ in range(results.qsize()))
