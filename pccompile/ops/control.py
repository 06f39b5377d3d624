"""Branches and loops on tensors: operations that call programs of their own.

The rule of a branch is a branch on the same condition between the messages of both; a loop keeps what each round began
with, and its rule goes back through the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pccompile.ir import Arg, Node, Ref, TensorType, Type
from pccompile.ops.backward import reversed_fragment
from pccompile.ops.builder import Builder
from pccompile.ops.registry import define

TypeOf = Callable[[Ref], TensorType]

WHILE = '''
def while_loop(test, body, carried, extra, more=()):
    """Rounds of `body` while `test` holds. Returns the last carried values, and those that each round began with."""
    history = []
    while test(*carried, *extra, *more)[0]:
        history.append(carried)
        carried = body(*carried, *extra, *more)
    return *carried, history
'''

SCAN = '''
def scan(body, carried, rows, extra, more=()):
    """`body` for row after row. Returns the last carried values, what each round gave, and what it began with."""
    history, given = [], []
    for row in zip(*(x.unbind() for x in rows)):
        history.append(carried)
        results = body(*carried, *row, *extra, *more)
        carried = results[: len(carried)]
        given.append(results[len(carried) :])
    return *carried, *(torch.stack(g) for g in zip(*given)), history
'''

SWEEP = '''
def loop_sweep(back, history, errors, row_errors, rows, extra, wanted, more=()):
    """Errors of what a loop began with, of its rows, and of what all its rounds read: one round back after another."""
    sums, sent_rows = [torch.zeros_like(x) for x in wanted], []
    for t in reversed(range(len(history))):
        sent = back(*history[t], *(x[t] for x in rows), *extra, *errors, *(e[t] for e in row_errors), *more)
        split = len(sent) - len(sums)
        errors = sent[: len(errors)]
        sent_rows.append(sent[len(errors) : split])
        sums = [total + more for total, more in zip(sums, sent[split:])]
    return *errors, *(torch.stack(s[::-1]) for s in zip(*sent_rows)), *sums
'''


def _wanted(b: Builder, names: tuple[Arg, ...]) -> list[int]:
    """The places of arguments that want a message, each value once."""
    return [i for i, a in enumerate(names) if isinstance(a, Ref) and a in b.wants and a not in names[:i]]


def _cond_rule(b: Builder, n: Node, err: Any) -> dict[str, Any]:
    operands = n["operands"]
    places = _wanted(b, operands)
    there = [e is not None for e in err]
    backs = []
    for branch in (n["yes"], n["no"]):
        wanted = [list(branch.parameters)[i] for i in places]
        backs.append(reversed_fragment(branch, b.typer, wanted, there, f"{branch.name}_messages"))
    sent = b("pcc.cond", n["pred"], (*operands, *(e for e in err if e is not None)), *backs)
    found: list[Ref | None] = [None] * len(operands)
    for i, place in enumerate(places):
        found[place] = b.get(sent, i)
    return {"operands": tuple(found)}


define(
    "pcc.cond",
    "composite",
    _cond_rule,
    parameters=("pred", "operands", "yes", "no"),
    infer=lambda args, type_of: args["yes"].types,
    spell="(yes if pred else no)(*operands, *more)",
    equation="yes(x) or no(x)",
)


def _loop_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    body, rows = args["body"], args.get("rows", ())
    count = len(args["carried"])
    length = type_of(rows[0]).shape[0] if rows else 0
    given = tuple(TensorType((length, *t.shape), t.dtype) for t in body.types[count:])
    return (*body.types[:count], *given, None)


def _loop_rule(b: Builder, n: Node, err: Any) -> dict[str, Any]:
    """One sweep back through the rounds that the loop has made."""
    body, carried, extra = n["body"], n["carried"], n["extra"]
    rows = n.args.get("rows", ())
    kinds, count = body.types, len(carried)
    parameters = list(body.parameters)
    moving = [i for i in range(count) if kinds[i].differentiable]
    giving = [i for i in range(count, len(kinds)) if kinds[i].differentiable and err[i] is not None]
    row_places, extra_places = _wanted(b, rows), _wanted(b, extra)
    wanted = [parameters[i] for i in moving]
    wanted += [parameters[count + i] for i in row_places]
    wanted += [parameters[count + len(rows) + i] for i in extra_places]
    there = [i in moving or i in giving for i in range(len(kinds))]
    back = reversed_fragment(body, b.typer, wanted, there, f"{body.name}_messages")
    errors = tuple(err[i] if err[i] is not None else b.zeros(kinds[i]) for i in moving)
    sweep = b("pcc.loop_sweep", Ref(n.name), errors, tuple(err[i] for i in giving), rows, extra,
              tuple(extra[i] for i in extra_places), back, tuple(b.type(rows[i]) for i in row_places))  # fmt: skip
    sent = {"carried": moving, "rows": row_places, "extra": extra_places}
    found: dict[str, list[Ref | None]] = {k: [None] * len(n.args.get(k, ())) for k in sent}
    index = 0
    for argument, places in sent.items():
        for place in places:
            found[argument][place] = b.get(sweep, index)
            index += 1
    return {k: tuple(v) for k, v in found.items() if k in n.args}


def _sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    return (*(type_of(e) for e in args["errors"]), *args["row_types"], *(type_of(w) for w in args["wanted"]))


define(
    "pcc.while_loop",
    "composite",
    _loop_rule,
    parameters=("test", "body", "carried", "extra"),
    infer=_loop_type,
    spell="while_loop(test, body, carried, extra, *more_together)",
    helper=WHILE,
    equation="loop(x)",
    misjudged="torch's own derivative of while_loop is wrong",
)
define(
    "pcc.scan",
    "composite",
    _loop_rule,
    parameters=("body", "carried", "rows", "extra"),
    infer=_loop_type,
    spell="scan(body, carried, rows, extra, *more_together)",
    helper=SCAN,
    equation="scan(x)",
)
define(
    "pcc.loop_sweep",
    "composite",
    parameters=("loop", "errors", "row_errors", "rows", "extra", "wanted", "back", "row_types"),
    infer=_sweep_type,
    spell="loop_sweep(back, loop[-1], errors, row_errors, rows, extra, wanted, *more_together)",
    helper=SWEEP,
)


def _when(a: Mapping[str, Any]) -> str:
    """A gradient where one of the alternatives holds, and None where no loss reaches it."""
    alternatives = (
        " and ".join(f"{'' if holds else 'not '}predicates[{i}][{j}]" for j, holds in enumerate(taken))
        for i, taken in enumerate(a["taken"])
    )
    return f"{'self.clone()' if a['copy'] else 'self'} if {' or '.join(alternatives)} else None"


define(
    "pcc.when",
    "composite",
    wiring=True,
    parameters=("self", "predicates", "taken", "copy"),
    infer=lambda args, type_of: type_of(args["self"]),
    spell=_when,
)
