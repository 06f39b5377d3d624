"""What goes between the processes of a divided program: slots of vertices at the cuts, over torch.distributed.

In step, each exchange waits for what it is to hear. Without a clock, turns go on with the newest that has come: threads
send and receive beside them, what could not be sent before something newer was there is not sent, and messages may be
lost on purpose. Turns end when every process has taken its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

LAST = 1
"""The byte behind a message after which none comes, else 0."""
Form = tuple[tuple[int, ...], torch.dtype]
"""The shape and the type of a tensor."""


@dataclass(frozen=True)
class Asynchronous:
    """How inference goes on without a clock.

    lost: the part of messages that does not arrive, drawn by `seed`; the first of each kind does, so that there is
    something to begin with, and the last, when inference has ended. pause: by rank, the seconds that it waits in each
    turn, as a slow process would.
    """

    lost: float = 0.0
    seed: int = 0
    pause: Mapping[int, float] = field(default_factory=dict)


class Link(NamedTuple):
    """All that one rank tells another in one exchange: the forms of the tensors, in order."""

    number: int
    of: int
    to: int
    forms: tuple[Form, ...]
    paced: bool = False

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.forms)


@dataclass
class Sent:
    """What this process has told others: so many messages, with so many bytes."""

    messages: int = 0
    bytes: int = 0


class Neighbours:
    """The other processes, as the generated functions of one take them. group: None for the default group."""

    def __init__(
        self, group: Any, links: Sequence[Link], device: torch.device, how: Asynchronous | None = None
    ) -> None:
        self.group, self.rank, self.device, self.how = group, dist.get_rank(group), device, how
        self.tells: dict[int, list[Link]] = {}
        self.hears: dict[int, list[Link]] = {}
        for link in links:
            if link.of == self.rank:
                self.tells.setdefault(link.number, []).append(link)
            if link.to == self.rank:
                self.hears.setdefault(link.number, []).append(link)
        self.paced = {link.number for link in links if link.paced}
        self.sent = Sent()
        self.mail: Mail | None = None
        self.draw = random.Random(f"{how.seed} {self.rank}" if how else "")
        self.pending: list[tuple[Any, Tensor]] = []

    def exchange(self, number: int, *told: Tensor) -> list[Tensor]:
        """Tell `told`, as many as exchange `number` has, and return what it hears, both in the order of its links."""
        if self.mail is not None and number in self.paced:
            return self.mail.exchange(self.messages(number, told), self.hears.get(number, ()))
        self.tell(number, *told)
        heard = self.hear(number)
        self.flush()
        return heard

    def messages(self, number: int, told: Sequence[Tensor]) -> list[tuple[Link, Tensor]]:
        """What each neighbour is told in an exchange."""
        found, place = [], 0
        for link in self.tells.get(number, ()):
            found.append((link, packed(told[place : place + len(link.forms)], link)))
            place += len(link.forms)
        return found

    def tell(self, number: int, *told: Tensor) -> None:
        """Begin to send what an exchange tells."""
        for link, message in self.messages(number, told):
            work = dist.isend(message, group=self.group, group_dst=link.to, tag=link.number)
            self.pending.append((work, message))
            self.count(message)

    def hear(self, number: int) -> list[Tensor]:
        """Wait for what an exchange hears."""
        heard = list[Tensor]()
        for link in self.hears.get(number, ()):
            message = torch.empty(link.size, dtype=torch.uint8, device=self.device)
            dist.recv(message, group=self.group, group_src=link.of, tag=link.number)
            heard += unpacked(message, link)
        return heard

    def count(self, message: Tensor) -> None:
        """Note a message that was sent."""
        self.sent.messages += 1
        self.sent.bytes += message.numel()

    def flush(self) -> None:
        """Wait until all has been sent."""
        for work, _ in self.pending:
            work.wait()
        self.pending.clear()

    def turns(self, steps: int) -> Iterator[int]:
        """The turns of a loop: as many as `steps`; without a clock more, until every process has taken as many."""
        if self.how is None or steps == 0:
            yield from range(steps)
            return
        self.mail = Mail(self)
        pause, turn = self.how.pause.get(self.rank, 0.0), 0
        try:
            everybody = None
            while turn < steps or everybody is None or not everybody.is_completed():
                if turn == steps:
                    everybody = dist.barrier(group=self.group, async_op=True)
                yield turn
                turn += 1
                time.sleep(pause)
        finally:
            self.mail.close()
            self.mail = None


def packed(tensors: Sequence[Tensor], link: Link) -> Tensor:
    """Tensors side by side, as bytes."""
    for t, (shape, dtype) in zip(tensors, link.forms, strict=True):
        assert (tuple(t.shape), t.dtype) == (shape, dtype), (link, t.shape, t.dtype)
    return torch.cat([t.contiguous().reshape(-1).view(torch.uint8) for t in tensors])


def unpacked(message: Tensor, link: Link) -> Iterator[Tensor]:
    """The tensors of a message, each with memory of its own."""
    place = 0
    for shape, dtype in link.forms:
        size = torch.Size(shape).numel() * dtype.itemsize
        yield message[place : place + size].clone().view(dtype).reshape(shape)
        place += size


class Mail:
    """The messages of a loop without a clock. Each link has a thread at both ends, and room for its newest message."""

    def __init__(self, neighbours: Neighbours) -> None:
        self.neighbours = neighbours
        self.boxes: dict[tuple[int, int, int], _Box] = {}
        self.threads: list[threading.Thread] = []
        for table, run in ((neighbours.tells, self._send), (neighbours.hears, self._receive)):
            for link in (link for links in table.values() for link in links if link.paced):
                box = self.boxes[link[:3]] = _Box()
                self.threads.append(threading.Thread(target=run, args=(link, box), daemon=True))
        for thread in self.threads:
            thread.start()

    def exchange(self, messages: Sequence[tuple[Link, Tensor]], hears: Sequence[Link]) -> list[Tensor]:
        """Leave messages to be sent, but for those that are lost, and take the newest that have come."""
        how = self.neighbours.how
        assert how is not None
        for link, message in messages:
            box = self.boxes[link[:3]]
            box.latest = message
            if box.version == 0 or self.neighbours.draw.random() >= how.lost:
                box.put(message)
        return [t for link in hears for t in unpacked(self.boxes[link[:3]].newest(), link)]

    def close(self) -> None:
        """Send what was told last, and hear all others out."""
        for link in (link for links in self.neighbours.tells.values() for link in links if link.paced):
            self.boxes[link[:3]].close()
        for thread in self.threads:
            thread.join()

    def _send(self, link: Link, box: _Box) -> None:
        while True:
            message, last = box.take()
            marked = torch.cat([message, message.new_full((1,), LAST if last else 0)])
            dist.send(marked, group=self.neighbours.group, group_dst=link.to, tag=link.number)
            self.neighbours.count(marked)
            if last:
                return

    def _receive(self, link: Link, box: _Box) -> None:
        while True:
            marked = torch.empty(link.size + 1, dtype=torch.uint8)
            dist.recv(marked, group=self.neighbours.group, group_src=link.of, tag=link.number)
            box.put(marked[:-1])
            if marked[-1] == LAST:
                return


class _Box:
    """Room for one message, the newest."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.message: Tensor | None = None
        self.latest: Tensor | None = None
        self.version, self.taken, self.closed = 0, 0, False

    def put(self, message: Tensor) -> None:
        with self.changed:
            self.message, self.version = message, self.version + 1
            self.changed.notify_all()

    def newest(self) -> Tensor:
        """The newest message; the first is waited for."""
        with self.changed:
            self.changed.wait_for(lambda: self.version > 0)
            assert self.message is not None
            return self.message

    def take(self) -> tuple[Tensor, bool]:
        """Wait for a message that has not been taken, or for the end; and whether it is the last."""
        with self.changed:
            self.changed.wait_for(lambda: self.version > self.taken or self.closed)
            self.taken = self.version
            assert self.message is not None
            return (
                (self.message, False)
                if not self.closed
                else (self.latest if self.latest is not None else self.message, True)
            )

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
