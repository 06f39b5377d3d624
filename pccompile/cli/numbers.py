"""Numbers on a command line, each kind one type of argparse."""

from __future__ import annotations

import argparse
import math

from pccompile.diagnostics import printable


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{printable(text, 40)} is not a number")
    return value


def rate(text: str) -> float | str:
    """A finite number, or the word that lets it be chosen."""
    return text if text == "auto" else number(text)


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    value = int(text)
    if value < 0 or value >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def bits(text: str) -> tuple[int, int]:
    """Bits of weights and of states, `8:16`."""
    weights, _, states = text.partition(":")
    found = int(weights), int(states)
    if not all(2 <= b <= 32 for b in found):
        raise argparse.ArgumentTypeError(f"{text} is not two numbers from 2 to 32")
    return found
