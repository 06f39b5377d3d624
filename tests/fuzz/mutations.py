"""Changes to messages, records, texts and bytes that no honest program would make."""

from __future__ import annotations

import copy
import random
from typing import Any

from google.protobuf.message import Message

WHOLE = (0, 1, -1, 2, 3, 7, 16, 255, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 10**6, 10**12)
REAL = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, -1e30, 3e38, float("inf"), float("-inf"), float("nan"))
TEXT = ("", "x", "y", "v1", "w1", "x\0y", "\n", "a" * 300, "ü\u202e", "../../x", "{0}%s", "ai.onnx", "nearest", "-1")
Draw = random.Random


def damaged(draw: Draw, data: bytes) -> bytes:
    """Bytes flipped, cut out, repeated, put in or cut off."""
    for _ in range(draw.randint(1, 4)):
        if not data:
            return bytes([draw.randrange(256)])
        at, length = draw.randrange(len(data)), draw.choice((1, 1, 2, 8, 100))
        kind = draw.randrange(5)
        if kind == 0:
            data = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[: at + length] + data[at:]
        elif kind == 3:
            data = data[:at] + draw.randbytes(length) + data[at:]
        else:
            data = data[:at]
    return data


def places(message: Message) -> list[tuple[Message, Any]]:
    """All fields that are set in a message and those inside it."""
    found = []
    for field, value in message.ListFields():
        found.append((message, field))
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                found += places(inner)
    return found


def change_message(draw: Draw, message: Message) -> None:
    """Change one field, in place."""
    owner, field = draw.choice(places(message))
    value = getattr(owner, field.name)
    try:
        if not hasattr(value, "extend"):
            _change_single(draw, message, owner, field)
        elif draw.random() < 0.3 or not value:
            _change_list(draw, value, field)
        elif field.type == field.TYPE_MESSAGE:
            change_message(draw, draw.choice(value))
        else:
            value[draw.randrange(len(value))] = _other(draw, message, field, value[0])
    except (ValueError, TypeError, IndexError):
        pass  # the field does not hold this


def _change_single(draw: Draw, root: Message, owner: Message, field: Any) -> None:
    if draw.random() < 0.25:
        owner.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        change_message(draw, getattr(owner, field.name))
    else:
        setattr(owner, field.name, _other(draw, root, field, getattr(owner, field.name)))


def _change_list(draw: Draw, value: Any, field: Any) -> None:
    items = list(value)
    kind = draw.randrange(4)
    if kind == 0 and items:
        del items[draw.randrange(len(items))]
    elif kind == 1 and items:
        items.append(copy.deepcopy(draw.choice(items)))
    elif kind == 2:
        draw.shuffle(items)
    else:
        items = items[: len(items) // 2]
    del value[:]
    value.extend(items)


def _other(draw: Draw, root: Message, field: Any, old: Any) -> Any:
    if field.type == field.TYPE_ENUM:
        return draw.randrange(24)
    if isinstance(old, float):
        return draw.choice(REAL)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return draw.choice((*WHOLE, old + 1, old - 1))
    if isinstance(old, bytes):
        return damaged(draw, old) if draw.random() < 0.7 else draw.choice(TEXT).encode()
    names = [getattr(o, f.name) for o, f in places(root) if f.name in ("name", "op_type", "domain")]
    return draw.choice(names or TEXT) if draw.random() < 0.7 else draw.choice(TEXT)


EXPRESSIONS = (
    "Piecewise()", "x**x**x", "+".join("x" * 900), "(" * 500 + "x" + ")" * 500, "__import__('os')", "x.real", "1e400",
    "exp(exp(exp(x)))", "polygamma(1e9, x)", "Piecewise((x, x > 0))", "Piecewise(x)", "exp()", "exp(x, x)", "9" * 5000,
    "x < 1", "True", "-True", "x if x else x", "lambda: x", "x & x", "log(x)", "1/0", "0**-1", "polygamma(x, x)", "x\0",
)  # fmt: skip
ANY = (*WHOLE, 0.5, -0.25, 1e300, True, False, None, "", "x", [], {}, [0], [1, 2], [10**9, 10**9], {"a": 1}, *TEXT)


def change_record(draw: Draw, record: Any) -> None:
    """Change one entry of nested dictionaries and lists, in place."""
    while True:
        keys = list(record) if isinstance(record, dict) else list(range(len(record)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = record[key]
        if not isinstance(inner, (dict, list)) or not inner or draw.random() < 0.15:
            break
        record = inner
    kind = draw.randrange(6)
    if key == "function" and draw.random() < 0.5:
        record[key] = draw.choice(EXPRESSIONS)
    elif kind == 0:
        del record[key]
    elif kind == 1 and isinstance(record, list):
        record.append(copy.deepcopy(inner))
    elif kind == 2 and isinstance(record, dict):
        record[draw.choice((*TEXT, *map(str, keys)))] = copy.deepcopy(inner)
    elif kind == 3:
        record[key] = copy.deepcopy(record[draw.choice(keys)])
    else:
        record[key] = copy.deepcopy(draw.choice(ANY))
