"""A second simulator, written from docs/netlist.md and nothing else: scalar units, one synapse after the other.

It shares no code with the package and is as slow as it looks.
"""

import ast
import itertools
import json
import math
import operator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy import special

FUNCTIONS = {
    **{n: getattr(np, n) for n in ("exp", "log", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "log1p", "expm1",
                                  "floor", "ceil", "trunc", "sign", "abs", "sinc")},
    **{"a" + n: getattr(np, "arc" + n) for n in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{n: getattr(special, n) for n in ("erf", "erfc", "erfinv", "erfcx", "ndtr", "ndtri", "log_ndtr", "digamma", "i0",
                                       "i1", "i0e", "i1e", "polygamma")},
    "lgamma": special.gammaln,
    "trigamma": lambda a: special.polygamma(1, a),
    "round": lambda a: np.float64(round(a)),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "softplus": lambda a: max(a, 0) + np.log1p(np.exp(-abs(a))),
    "relu": lambda a: a if a > 0 else np.float64(0),
    "step": lambda a: np.float64(a > 0),
    "sinc_slope": lambda a: (np.cos(np.pi * a) - np.sinc(a)) / a if a else np.float64(0),
    "hypot1": lambda a: np.hypot(a, 1),
}  # fmt: skip
OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def value(node, x):
    """The value of an expression at x."""
    if isinstance(node, str):
        node = ast.parse(node, mode="eval").body
    match node:
        case ast.Constant():
            return node.value if isinstance(node.value, bool) else np.float64(node.value)
        case ast.Name(id="x"):
            return np.float64(x)
        case ast.UnaryOp():
            return -np.float64(value(node.operand, x))
        case ast.BinOp():
            kind = bool if isinstance(node.op, ast.BitAnd | ast.BitOr) else np.float64
            return OPERATIONS[type(node.op)](kind(value(node.left, x)), kind(value(node.right, x)))
        case ast.Compare():
            return OPERATIONS[type(node.ops[0])](value(node.left, x), value(node.comparators[0], x))
        case ast.Call(func=ast.Name(id="Piecewise")):
            pairs = [pair.elts for pair in node.args]
            return value(next((v for v, c in pairs if value(c, x)), pairs[-1][0]), x)
        case ast.Call(func=ast.Name(id=name)):
            return FUNCTIONS[name](*(value(a, x) for a in node.args))
    raise ValueError(ast.dump(node))


def flat(place, shape):
    number = 0
    for p, s in zip(place, shape, strict=True):
        number = number * s + p
    return number


def places(shape):
    return itertools.product(*map(range, shape))


class Naive:
    """A circuit from its two files, ready to tick."""

    def __init__(self, path: Path, replicas: int = 1) -> None:
        self.d = json.loads(path.read_text(encoding="utf-8"))
        self.tensors = load_file(path.parent / self.d["tensor_file"]) if "tensor_file" in self.d else {}
        self.units, self.replicas = self.d["populations"], range(replicas)
        self.rules = self.d.get("plasticity", [])
        self.named = {p["name"]: p for p in self.d["projections"]}
        self.into = {n: [p for p in self.d["projections"] if p["post"].rpartition(":")[0] == n] for n in self.units}
        self.state = {n: [[0.0] * self.size(n) for _ in self.replicas] for n in self.units}
        self.winner, self.past = {}, []
        self.order = []
        for n in self.units:
            self.visit(n)
        self.synapses = {p["name"]: list(self.listed(p, *self.shapes(p))) for p in self.d["projections"]
                         if p["op"] not in ("route", "einsum")}  # fmt: skip

    def size(self, name):
        return math.prod(self.units[name]["shape"])

    def combinational(self, name):
        return self.units[name]["unit"] in ("sum", "map", "product", "select")

    def visit(self, name):
        if self.combinational(name) and name not in self.order:
            for p in self.into[name]:
                read = [] if p.get("delay") else [p["pre"], *([p["with"]] if "with" in p else [])]
                for other in read + ([p["by"]] if "by" in p else []):
                    self.visit(other)
            self.order.append(name)

    def shapes(self, p):
        """The shapes of pre and post of the map itself."""
        ends = [self.units[n]["shape"] for n in (p["pre"], p["post"].rpartition(":")[0])]
        return ends[::-1] if p.get("transpose") else ends

    def listed(self, p, pre, post):
        """(unit of post, unit of pre, entry of the parameter or None) of each synapse of a map."""
        match p["op"]:
            case "one_to_one":
                yield from ((i, i, None) for i in range(math.prod(post)))
            case "gather":
                for i, row in enumerate(self.tensors[p["index"]].tolist()):
                    yield from ((i, unit, None) for unit in row if unit >= 0)
            case "sparse":
                index = self.tensors[p["index"]].tolist()
                elements = self.tensors[p["elements"]].tolist() if "elements" in p else range(len(index[0]))
                yield from zip(*index, elements, strict=True)
            case "dense":
                for *r, o in places(post):
                    for i in range(pre[-1]):
                        yield flat((*r, o), post), flat((*r, i), pre), o * pre[-1] + i
            case "conv":
                kernel = self.tensors[p["param"]].shape
                for n, o, *at in places(post):
                    for j, *k in places(kernel[1:]):
                        c = o // (kernel[0] // p.get("groups", 1)) * kernel[1] + j
                        q = [a * s - pad + b * d for a, s, pad, b, d in
                             zip(at, p["stride"], p["padding"], k, p["dilation"], strict=True)]  # fmt: skip
                        if all(0 <= a < length for a, length in zip(q, pre[2:], strict=True)):
                            yield flat((n, o, *at), post), flat((n, c, *q), pre), flat((o, j, *k), kernel)

    def multiplied(self, p, x, z):
        """(unit of post, summand) of each combination of places along all lettered axes."""
        first, second, third = p["subscripts"].replace("->", ",").split(",")
        pre, post = self.shapes(p)
        length = dict(zip(first + third, (*pre, *post), strict=True))
        other = self.units[p["with"]]["shape"]
        for place in places(length.values()):
            at = dict(zip(length, place, strict=True))
            i, k = flat([at[c] for c in first], pre), flat([at[c] for c in third], post)
            j = flat([at[c] for c in second], other)
            to, of = (i, k) if p.get("transpose") else (k, i)
            yield to, x[of] * z[j]

    def read(self, p, r, end="pre"):
        delay = p.get("delay", 0)
        if not delay:
            return self.state[p[end]][r]
        return self.past[-delay][p[end]][r] if delay <= len(self.past) else [0.0] * self.size(p[end])

    def arriving(self, name, port, r):
        """The sums of the messages at a port."""
        sums = [0.0] * self.size(name)
        for p in self.into[name]:
            if p["post"] == f"{name}:{port}":
                x, gain = self.read(p, r), p.get("gain", 1.0)
                if p["op"] == "route":
                    elements = self.tensors[p["elements"]].tolist() if "elements" in p else itertools.count()
                    for i, (row, j) in enumerate(zip(self.tensors[p["index"]].tolist(), elements, strict=False)):
                        unit = row[self.winner[p["by"]][r][j]]
                        if unit >= 0:
                            to, of = (unit, i) if p.get("transpose") else (i, unit)
                            sums[to] += gain * x[of]
                elif p["op"] == "einsum":
                    for to, summand in self.multiplied(p, x, self.read(p, r, "with")):
                        sums[to] += gain * summand
                else:
                    w = self.tensors[p["param"]].reshape(-1) if "param" in p else None
                    for to, of, entry in self.synapses[p["name"]]:
                        to, of = (of, to) if p.get("transpose") else (to, of)
                        sums[to] += gain * x[of] * (1 if entry is None else w[entry])
        return sums

    def choose(self, name, r):
        """Winners and winning messages of a select population."""
        (p,), u = self.into[name], self.units[name]
        x, sign = self.read(p, r), -1 if u.get("smallest") else 1
        ranks = self.tensors[u["ranks"]].reshape(-1) if "ranks" in u else [0] * self.size(name)
        won = []
        for row, rank in zip(self.tensors[p["index"]].tolist(), ranks, strict=True):
            slots = [k for k, unit in enumerate(row) if unit >= 0]
            slots.sort(key=lambda k, row=row: -sign * p.get("gain", 1.0) * x[row[k]])  # keeps the order of equals
            won.append((slots[rank], p.get("gain", 1.0) * x[row[slots[rank]]]))
        self.winner.setdefault(name, {})[r] = [slot for slot, _ in won]
        return [message for _, message in won]

    def combined(self, name, r):
        u = self.units[name]
        if u["unit"] == "select":
            return self.choose(name, r)
        if u["unit"] == "product":
            return [a * b for a, b in zip(*(self.arriving(name, port, r) for port in "xy"), strict=True)]
        sums = self.arriving(name, "in", r)
        if u["unit"] == "map":
            return [float(value(u["function"], s)) for s in sums]
        if "bias" in u:
            bias, axis = self.tensors[u["bias"]].reshape(-1), u.get("bias_axis")
            entries = [i if axis is None else at[axis] for i, at in enumerate(places(u["shape"]))]
            sums = [s + bias[entry] for s, entry in zip(sums, entries, strict=True)]
        return sums

    def change(self, rule):
        """What a rule adds to its parameter."""
        param = self.tensors[rule["param"]]
        found = np.zeros(param.size)
        post = self.units[rule["post"]]["shape"]
        for r in self.replicas:
            y, x = self.state[rule["post"]][r], self.state[rule["pre"]][r] if "pre" in rule else None
            if rule["rule"] == "copy":
                for i, at in enumerate(places(post)):
                    found[at[rule["axis"]] if "axis" in rule else i] += y[i]
                continue
            geometry = {"op": "dense"} if rule["rule"] == "outer" else self.named[rule["via"]]
            for to, of, entry in self.listed(geometry, self.units[rule["pre"]]["shape"], post):
                found[entry] += y[to] * x[of]
        found = rule.get("gain", 1.0) * found.reshape(param.shape) - rule.get("decay", 0.0) * param
        return rule["rate"] * found

    def tick(self, phase):
        with np.errstate(all="ignore"):
            for name in self.order:
                self.state[name] = [self.combined(name, r) for r in self.replicas]
        after = {}
        for name, u in self.units.items():
            if u["unit"] == "integrator":
                after[name] = [
                    [s + u.get("rate", 1.0) * (a - u.get("leak", 1.0) * s)
                     for s, a in zip(self.state[name][r], self.arriving(name, "in", r), strict=True)]
                    for r in self.replicas
                ]  # fmt: skip
        changes = [(rule["param"], self.change(rule)) for rule in self.rules if rule.get("phase", "learn") == phase]
        self.past.append(dict(self.state))
        self.state.update(after)
        for name, delta in changes:
            self.tensors[name] = self.tensors[name] + delta
