"""Runs seeds in processes that may crash, hang or grow, and tells what each came to."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS, HANGING = 20, 60
"""CPU seconds that a case may take, and after how many its process is killed."""

GIBIBYTES = 2
"""Resident memory that a process may reach, libraries among it."""

Write = Callable[[int, Path], "list[list[str]]"]


@dataclass
class Outcome:
    """What a seed came to: its exit code, and what is wrong with that, if anything."""

    seed: int
    code: int
    wrong: str = ""
    seconds: float = 0.0


def run(write: Write, seeds: Sequence[int]) -> Iterator[Outcome]:
    """The outcome of each seed; a process that dies or hangs is one of them, and another goes on."""
    waiting = list(seeds)
    while waiting:
        batch, waiting = waiting[:200], waiting[200:]
        while batch:
            done, ended = yield from _batch(write, batch)
            rest = batch[done:]
            if rest and ended:
                yield Outcome(rest[0], -1, ended)
                rest = rest[1:]
            batch = rest


def _batch(write: Write, seeds: list[int]):
    """Outcomes of a forked process; how many there were, and how it ended if it did not get to the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(write, seeds, writing)
    os.close(writing)
    done, text, ended = 0, b"", ""
    heard, started = time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([reading], [], [], 5)
        if not ready:
            if _spent(child) - started > HANGING or time.monotonic() - heard > 10 * HANGING:
                os.kill(child, signal.SIGKILL)
                ended = f"hangs for more than {HANGING} seconds"
                break
            continue
        heard, started = time.monotonic(), _spent(child)
        block = os.read(reading, 1 << 16)
        if not block:
            break
        text += block
        *lines, text = text.split(b"\n")
        for line in lines:
            done += 1
            yield Outcome(**json.loads(line))
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if not ended and os.WIFSIGNALED(status):
        ended = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return done, ended or ("ends with an error" if os.waitstatus_to_exitcode(status) > 0 else "")


def _spent(process: int) -> float:
    """The CPU seconds that a process has taken; a busy machine makes the clock go faster."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(write: Write, seeds: list[int], writing: int) -> None:
    """In the forked process: run all seeds, a line of JSON for each, and leave."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for seed in seeds:
            os.write(writing, json.dumps(asdict(case(write, seed))).encode() + b"\n")
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > GIBIBYTES << 20:
                break  # the rest in another process: the highest mark does not fall
    except BaseException:
        os._exit(1)
    os._exit(0)


def case(write: Write, seed: int) -> Outcome:
    """Run one seed in a folder of its own, in this process."""
    folder, before = Path(tempfile.mkdtemp(prefix="fuzz")), os.getcwd()
    os.chdir(folder)
    start, outcome = time.process_time(), Outcome(seed, 0)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for arguments in write(seed, folder):
            outcome = _called(seed, arguments)
            outcome.wrong = outcome.wrong or _leftovers(folder)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)
    outcome.seconds = round(time.process_time() - start, 2)
    reached = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not outcome.wrong and outcome.seconds > SECONDS and outcome.code != 0:
        outcome.wrong = f"takes {outcome.seconds} seconds"
    if not outcome.wrong and reached > max(highest, GIBIBYTES << 20):
        outcome.wrong = f"takes {reached >> 10} MiB"
    return outcome


def _called(seed: int, arguments: list[str]) -> Outcome:
    """The outcome of one command line, or of only loading a model and finding inputs for it."""
    from pccompile.cli import main
    from pccompile.cli.loading import load
    from pccompile.cli.user_inputs import UserInputs
    from pccompile.diagnostics import CompileError

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if arguments[0] == "load":
                try:
                    load(arguments[1], UserInputs(), 0)
                    return Outcome(seed, 0)
                except CompileError as error:
                    return Outcome(seed, 1, "" if str(error).strip() else "an empty error")
            code = main([*arguments, "--debug"])
    except BaseException:
        return Outcome(seed, 70, traceback.format_exc()[-1500:])
    said = err.getvalue()
    if code not in (0, 1, 2, 3) or "Traceback" in said:
        return Outcome(seed, code, f"{' '.join(arguments)}: exit {code}: {said[-1500:]}")
    if code and not said.strip() and not out.getvalue().strip():
        return Outcome(seed, code, f"{' '.join(arguments)}: exit {code} without a word")
    return Outcome(seed, code)


def _leftovers(folder: Path) -> str:
    """What should not lie there."""
    left = [str(p) for p in folder.rglob(".pccompile*")]
    return f"leaves {left}" if left else ""


def save(folder: Path, kind: str, write: Write, outcome: Outcome) -> None:
    """Keep the files of a seed that went wrong, with what was wrong."""
    place = folder / f"{kind}-{outcome.seed}"
    place.mkdir(parents=True, exist_ok=True)
    arguments = write(outcome.seed, place)
    (place / "wrong.txt").write_text(f"{arguments}\n{outcome.wrong}\n", encoding="utf-8")
    print(f"{kind} {outcome.seed}: {outcome.wrong.strip().splitlines()[-1][:200]}", file=sys.stderr, flush=True)
