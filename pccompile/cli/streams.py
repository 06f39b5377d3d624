"""Standard output and error as they may be: closed, full, or of few characters."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def prepare() -> None:
    """Let characters that a stream does not have come out as escapes, and what goes to a closed one be dropped."""
    sys.stdout, sys.stderr = (s if s is not None else open(os.devnull, "w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            if (stream.encoding or "").lower().replace("-", "") not in ("utf8", "utf16", "utf32"):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def flush() -> None:
    """Write out what was printed. Raises OSError where nobody takes it."""
    sys.stdout.flush()


def abandon() -> None:
    """Drop what could not be printed, so that Python does not try again at its end."""
    with suppress(AttributeError, ValueError, OSError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)


def talk(text: str) -> None:
    """A line to stderr; there may be nobody who reads it."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def hushed() -> Iterator[None]:
    """Libraries neither warn nor log inside."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
