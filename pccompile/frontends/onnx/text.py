"""Operators on text. They run on the host and carry no gradient."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import StringArray, Value, as_host, described, text_of
from pccompile.limits import spend

CASES: dict[str, Callable[[str], str]] = {
    "LOWER": lambda s: s.lower(),
    "UPPER": lambda s: s.upper(),
    "NONE": lambda s: s,
}


def as_text(value: Value) -> StringArray:
    """`value`, which has to be text."""
    if not isinstance(value, StringArray):
        raise CompileError(f"text is expected, {described(value)} is given")
    return value


def each(function: Callable[..., Any], *texts: StringArray) -> np.ndarray[Any, Any]:
    """`function` of each string, broadcast, as an array of objects."""
    results = np.frompyfunc(function, len(texts), 1)(*(t.array for t in texts))
    return np.asarray(results, dtype=object)


@operator("StringConcat")
def string_concat(node: Node, a: Value, b: Value) -> StringArray:
    """The strings of a followed by those of b."""
    first, second = as_text(a), as_text(b)
    spend("entries", int(np.prod(np.broadcast_shapes(first.array.shape, second.array.shape))), node.op_type)

    def joined(x: str, y: str) -> str:
        spend("characters", len(x) + len(y), node.op_type)
        return x + y

    return StringArray(each(joined, first, second))


@operator("StringNormalizer")
def string_normalizer(node: Node, x: Value) -> StringArray:
    """The strings of x without stop words, in upper or lower case; one empty string where none is left."""
    change = CASES[node.get("case_change_action", "NONE")]
    compared = CASES["NONE" if node.get("is_case_sensitive", 0) else "LOWER"]
    stop = {compared(word) for word in node.get("stopwords") or ()}
    array = as_text(x).array
    kept = [change(s) for s in array.reshape(-1) if compared(s) not in stop] or [""]
    return text_of([kept] if array.ndim == 2 else kept)


@operator("StringSplit")
def string_split(node: Node, x: Value) -> tuple[StringArray, Tensor]:
    """The parts of each string along a new axis, filled up with empty strings, and their number."""
    array, most = as_text(x).array, node.get("maxsplit", -1)
    parts = [s.split(node.get("delimiter") or None, most) for s in array.reshape(-1)]
    width = max(map(len, parts), default=0)
    spend("entries", len(parts) * width, node.op_type)
    filled = np.full((len(parts), width), "", dtype=object)
    for row, found in zip(filled, parts, strict=True):
        row[: len(found)] = found
    counts = torch.tensor([len(p) for p in parts], dtype=torch.int64).reshape(array.shape)
    return StringArray(filled.reshape(*array.shape, width)), counts


@operator("RegexFullMatch")
def regex_full_match(node: Node, x: Value) -> Tensor:
    """Whether each string as a whole matches a pattern."""
    try:
        import re2  # ONNX asks for its syntax; it matches in linear time, whatever the pattern
    except ImportError:
        raise CompileError("RegexFullMatch needs google-re2", hint="pip install google-re2") from None
    pattern = node.get("pattern", "")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise CompileError(f"the pattern {pattern!r} cannot be read: {error}") from None
    return torch.from_numpy(each(lambda s: compiled.fullmatch(s) is not None, as_text(x)).astype(np.bool_))


@operator("TfIdfVectorizer")
def tf_idf(node: Node, x: Value) -> Tensor:
    """How often each n-gram of a pool occurs in each row of x, weighted as `mode` says."""
    array = x.array if isinstance(x, StringArray) else as_host(x, "the tokens of TfIdfVectorizer").array
    places = node.get("ngram_indexes")
    weights = node.get("weights") or [1.0] * len(places)
    grams = pool(node)
    rows = []
    if min(places, default=0) < 0:
        raise CompileError("ngram_indexes of TfIdfVectorizer are not negative")
    spend("entries", array.size // max(array.shape[-1], 1) * (max(places, default=0) + 1), node.op_type)
    for tokens in array.reshape(-1, array.shape[-1]).tolist():
        found = occurrences(node, tokens)
        row = [0.0] * (max(places, default=0) + 1)
        for gram, place, weight in zip(grams, places, weights, strict=True):
            count = found[gram]
            row[place] = {"TF": count, "IDF": min(count, 1) * weight, "TFIDF": count * weight}[node.get("mode")]
        rows.append(row)
    return torch.tensor(rows, dtype=node.single).reshape(*array.shape[:-1], -1)


def pool(node: Node) -> list[tuple[Hashable, ...]]:
    """The n-grams that are counted, shorter ones first as the node lists them. Raises CompileError for wrong starts."""
    flat = list(node.get("pool_int64s") or node.get("pool_strings") or ())
    starts = [*node.get("ngram_counts"), len(flat)]
    if starts != sorted(starts) or starts[0] < 0:
        raise CompileError("ngram_counts of TfIdfVectorizer are places in its pool, in ascending order")
    return [
        tuple(flat[i : i + n])
        for n, (first, last) in enumerate(itertools.pairwise(starts), start=1)
        for i in range(first, last, n)
    ]


def occurrences(node: Node, tokens: Sequence[Hashable]) -> Counter[tuple[Hashable, ...]]:
    """All n-grams of the lengths asked for, with all skips allowed; a single token cannot skip any."""
    found: Counter[tuple[Hashable, ...]] = Counter()
    for n in range(max(node.get("min_gram_length"), 1), min(node.get("max_gram_length"), len(tokens)) + 1):
        furthest = 1 if n == 1 else (len(tokens) - 1) // (n - 1)
        for step in range(1, min(furthest, 1 if n == 1 else node.get("max_skip_count", 0) + 1) + 1):
            reach = step * (n - 1) + 1
            spend("entries", n * (len(tokens) - reach + 1), node.op_type)
            found.update(tuple(tokens[i : i + reach : step]) for i in range(len(tokens) - reach + 1))
    return found
