"""What the command line allows beyond the default: larger files, files that run code, files that were edited."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from pccompile.files.writing import forced
from pccompile.limits import WORDS, budget, parse_budget


def permission_options(p: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = p.add_argument_group("what is allowed")
    group.add_argument("--budget", action="append", default=[], metavar="FACTOR|NAME=NUMBER",
                       help=f"let a file ask for more, of everything or of {', '.join(WORDS)}")  # fmt: skip
    group.add_argument("--trust-code", action="store_true",
                       help="open a .pt2 file, which can run any code while it is loaded")  # fmt: skip
    group.add_argument("--force", action="store_true",
                       help="overwrite generated files that were edited since, or are read-only")  # fmt: skip


@contextmanager
def granted(options: argparse.Namespace) -> Iterator[None]:
    """Within: what the options allow is allowed. Raises UsageError for a budget that is none."""
    factor, limits = parse_budget(options.budget)
    with budget(factor, **limits), forced(options.force):
        yield
