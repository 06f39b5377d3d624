"""What texts have in common, and the words in which they differ: `layers.3.weight`, `layers.4.weight` …"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pccompile.backends.torch.code import quoted

PIECES = re.compile(r"\d+|[^\W\d_]+|[\W_]")
STAR = "*"


def aligned(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """The words, numbers and signs of `texts`, side by side.

    Where they do not have as many, what stands between those that all begin and end with counts as one.
    """
    rows = [PIECES.findall(text) for text in texts]
    fewest = min(map(len, rows))
    if all(len(row) == fewest for row in rows):
        return list(zip(*rows, strict=True))
    first, last = rows[0], rows[0][::-1]
    begin = next((i for i in range(fewest) if any(row[i] != first[i] for row in rows)), fewest)
    end = next((i for i in range(fewest - begin) if any(row[-1 - i] != last[i] for row in rows)), fewest - begin)
    middle = ("".join(row[begin : len(row) - end]) for row in rows)
    same = [(piece,) * len(rows) for piece in (*first[:begin], *first[len(first) - end :])]
    return [*same[:begin], tuple(middle), *same[begin:]]


def pattern(texts: Sequence[str]) -> str:
    """The text that stands for all: `*` for what differs from one to the next."""
    return "".join(STAR if len(set(column)) > 1 else column[0] for column in aligned(texts))


def rest(texts: Sequence[str], otherwise: str = "value") -> str:
    """What all texts have in common, as one name; `otherwise` where this is nothing.

    An `n` goes with the number behind it: identifiers do not begin with a number.
    """
    pieces = aligned(texts)
    differs = [len(set(column)) > 1 for column in pieces]
    kept = [
        "_" if off or (following and column[0] == "n") or not column[0].isalnum() else column[0]
        for column, off, following in zip(pieces, differs, [*differs[1:], False], strict=False)
    ]
    return re.sub(r"_+", "_", "".join(kept)).strip("_") or otherwise


class Words:
    """The words in which runs differ, each with what it is in every run."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.columns: dict[tuple[str, ...], int] = {}

    def template(self, texts: Sequence[str]) -> list[str | int]:
        """The pieces of `texts`, one for each run: text that is the same in all, or which word stands there."""
        found: list[str | int] = []
        for column in aligned(texts):
            if len(set(column)) > 1:
                found.append(self.columns.setdefault(column, len(self.columns)))
            elif found and isinstance(found[-1], str):
                found[-1] += column[0]
            else:
                found.append(column[0])
        return found

    def arguments(self) -> list[tuple[str, ...]]:
        """The words of each run as Python text: numbers where all of a column are."""
        columns = ((c, all(map(_is_number, c))) for c in self.columns)
        texts = [c if numbers else tuple(map(quoted, c)) for c, numbers in columns]
        return list(zip(*texts, strict=True)) if texts else [()] * self.runs


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and str(int(text)) == text


def spelled(template: Sequence[str | int], names: Sequence[str]) -> str:
    """A text with words in it as a Python expression, each word under its name."""
    pieces = (
        f"{{{names[p]}}}" if isinstance(p, int) else quoted(p)[1:-1].replace("{", "{{").replace("}", "}}")
        for p in template
    )
    return f'f"{"".join(pieces)}"'
