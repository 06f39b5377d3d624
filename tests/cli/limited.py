"""The command line in a process of its own that may take only so much."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

import pccompile.cli.netlist_command
import pccompile.cli.torch_command
import pccompile.frontends.onnx  # noqa: F401
from pccompile.cli import main

SECONDS, GIBIBYTES = 20, 1.5
"""What a refusal may take; with half a gibibyte of libraries the command stays below two gibibytes."""


@dataclass
class Ending:
    """How a process ended: its exit code or signal, what it printed, and what it took besides the libraries."""

    code: int
    said: str
    seconds: float
    gibibytes: float


def limited(*arguments: str, seconds: int = SECONDS) -> Ending:
    """Run the command line in a fork, which has the libraries already, with a limit on its time."""
    result, before = Path("ending.json").absolute(), _resident()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = main(list(arguments))
        except BaseException:
            out.write(traceback.format_exc())
            code = -1
        result.write_text(json.dumps([code, out.getvalue()]))
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    took, grown = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20 - before
    if os.WIFSIGNALED(status):
        return Ending(-os.WTERMSIG(status), signal.Signals(os.WTERMSIG(status)).name, took, grown)
    code, said = json.loads(result.read_text())
    result.unlink()
    return Ending(code, said, took, grown)


def _resident() -> float:
    """The gibibytes that this process holds, as a fork of it does from the start: more, the more tests have run."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
