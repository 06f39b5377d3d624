"""ONNX files that are wrong in any way, a seed each."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.graphs import valid
from fuzz.mutations import change_message, damaged


def write(seed: int, folder: Path) -> list[list[str]]:
    """Write the file of a seed; return the command lines to try."""
    draw = random.Random(seed)
    model = valid(draw)
    for _ in range(draw.choice((0, 1, 1, 2, 3, 5))):
        change_message(draw, model)
    data = model.SerializeToString()
    if draw.random() < 0.15:
        data = damaged(draw, data)
    (folder / "m.onnx").write_bytes(data)
    kind = draw.randrange(40)
    if kind < 2:
        return [["m.onnx", "-o", "out"]]
    if kind == 2:
        return [["m.onnx", "--verify"]]
    if kind == 3:
        return [["m.onnx", "--backend", "netlist", "-o", "out"]]
    return [["m.onnx", "--doctor"]] if kind == 4 else [["load", "m.onnx"]]
