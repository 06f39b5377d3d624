"""Fixed point in Python's integers, unit by unit, written from docs/netlist.md and nothing else."""

import itertools
from fractions import Fraction

import numpy as np

from netlist.naive import Naive, places, value


def shr(v, k):
    return (v + (1 << (k - 1))) >> k if k > 0 else v << -k


def sat(v, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, v))


def integer(v, bits):
    if np.isnan(v):
        return 0
    return sat(round(Fraction(v) * Fraction(2) ** bits[1]) if np.isfinite(v) else int(np.sign(v)) << 99, bits[0])


def factor(gain):
    """c and s of a factor. A power of two may as well have 15 bits: the shift takes them away again."""
    s = 0
    while abs(gain) * 2.0**s >= 2**15:
        s -= 1
    while 0 < abs(gain) * 2.0**s < 2**14:
        s += 1
    return round(Fraction(gain) * Fraction(2) ** s), s


class FixedNaive(Naive):
    """The same circuit on integers; states of inputs are set as integers too."""

    def __init__(self, path, replicas=1):
        super().__init__(path, replicas)
        self.b = {n: tuple(u.get("bits", (16, 10))) for n, u in self.units.items()}
        self.at = {}
        for n, u in self.units.items():
            for i, port in enumerate("xy" if u["unit"] == "product" else ["in"]):
                self.at[f"{n}:{port}"] = tuple(u["port_bits"][i]) if "port_bits" in u else self.b[n]
        weights, self.w = {p.get("param") for p in self.d["projections"]}, {}
        for u, b in ((u, self.b[n]) for n, u in self.units.items()):
            if "bias" in u and u["bias"] not in weights:
                self.w.setdefault(u["bias"], b)
        for name, array in self.tensors.items():
            if array.dtype.kind == "f":
                self.w[name] = tuple(self.d["tensors"][name].get("bits", ())) or self.w.get(name) or self.fitting(array)
                flat = [integer(v, self.w[name]) for v in array.reshape(-1).tolist()]
                self.tensors[name] = np.array(flat, dtype=object).reshape(array.shape)
        self.state = {n: [[0] * self.size(n) for _ in self.replicas] for n in self.units}
        self.held = {n: [[0] * self.size(n) for _ in self.replicas] for n in self.units}

    @staticmethod
    def fitting(array):
        largest = float(np.abs(array).max(initial=0))
        return 8, next(f for f in range(200, -200, -1) if round(largest * 2.0**f) <= 127) if largest else 7

    def read(self, p, r, end="pre"):
        return [int(v) for v in super().read(p, r, end)]

    def message(self, p, m):
        c, s = factor(p.get("gain", 1.0))
        carried = self.b[p["pre"]][1] + (self.w[p["param"]][1] if "param" in p else 0)
        carried += self.b[p["with"]][1] if "with" in p else 0
        return shr(m * c, carried + s - self.at[p["post"]][1])

    def arriving(self, name, port, r):
        sums, mine = [0] * self.size(name), self.into[name]
        for p in mine:
            if p["post"] == f"{name}:{port}":
                self.into[name] = [{**p, "gain": 1.0}]
                exact = super().arriving(name, port, r)
                self.into[name] = mine
                sums = [a + self.message(p, int(m)) for a, m in zip(sums, exact, strict=True)]
        return sums

    def choose(self, name, r):
        (p,) = mine = self.into[name]
        self.into[name] = [{**p, "gain": float(np.sign(p.get("gain", 1.0)))}]
        won = super().choose(name, r)
        self.into[name] = mine
        sign = int(self.into[name][0].get("gain", 1.0) < 0)
        return [sat(self.message(p, int(-m if sign else m)), self.b[name][0]) for m in won]

    def combined(self, name, r):
        u, (bits, f) = self.units[name], self.b[name]
        match u["unit"]:
            case "select":
                return self.choose(name, r)
            case "product":
                (bx, fx), (by, fy) = (self.at[f"{name}:{port}"] for port in "xy")
                x, y = ([sat(v, b) for v in self.arriving(name, port, r)] for port, b in (("x", bx), ("y", by)))
                return [sat(shr(a * b, fx + fy - f), bits) for a, b in zip(x, y, strict=True)]
            case "map":
                total, inward = self.at[f"{name}:in"]
                return [self.mapped(u, sat(v, total), inward, bits, f) for v in self.arriving(name, "in", r)]
        sums = self.arriving(name, "in", r)
        if "bias" in u:
            bias, axis = self.tensors[u["bias"]].reshape(-1), u.get("bias_axis")
            entries = [i if axis is None else at[axis] for i, at in enumerate(places(u["shape"]))]
            sums = [s + shr(bias[e], self.w[u["bias"]][1] - f) for s, e in zip(sums, entries, strict=True)]
        return [sat(s, bits) for s in sums]

    def mapped(self, u, x, inward, bits, f):
        if u["function"] == "relu(x)":
            return sat(shr(max(x, 0), inward - f), bits)
        if u["function"] == "step(x)":
            return sat(shr(1, -f), bits) if x > 0 else 0
        length, reach = u.get("table", (12, 3))
        n = inward + reach + 1 - length
        place = (x >> n if n >= 0 else x << -n) + 2 ** (length - 1)
        centre = (max(0, min(2**length - 1, place)) - 2 ** (length - 1) + 0.5) * 2.0 ** (reach + 1 - length)
        return integer(float(value(u["function"], centre)), (bits, f))

    def change(self, rule):
        f, param = self.w[rule["param"]][1], self.tensors[rule["param"]]
        exact = super().change({**rule, "rate": 1.0, "gain": 1.0, "decay": 0.0}).reshape(-1)
        c, s = factor(rule["rate"] * rule.get("gain", 1.0))
        d, t = factor(rule["rate"] * rule.get("decay", 0.0))
        carried = self.b[rule["post"]][1] + (self.b[rule["pre"]][1] if "pre" in rule else 0)
        asked = [shr(int(v) * c, carried + s - f) - shr(w * d, t) for v, w in zip(exact, param.flat, strict=True)]
        return np.array(asked, dtype=object).reshape(param.shape)

    def tick(self, phase):
        for name in self.order:
            self.state[name] = [self.combined(name, r) for r in self.replicas]
        held = {}
        for (name, u), r in itertools.product(self.units.items(), self.replicas):
            if u["unit"] == "integrator":
                k = round(-np.log2(u.get("rate", 1.0)))
                guard, leak = u.get("guard", k), int(u.get("leak", 1.0))
                held.setdefault(name, []).append([
                    sat(a + shr((v << guard) - leak * a, k), self.b[name][0] + guard)
                    for a, v in zip(self.held[name][r], self.arriving(name, "in", r), strict=True)
                ])  # fmt: skip
        rules = [rule for rule in self.rules if rule.get("phase", "learn") == phase]
        changes: dict = {}
        for rule in rules:
            changes[rule["param"]] = np.asarray(changes.get(rule["param"], 0) + self.change(rule), dtype=object)
        self.past.append(dict(self.state))
        for name, accumulators in held.items():
            k = round(-np.log2(self.units[name].get("rate", 1.0)))
            guard, bits = self.units[name].get("guard", k), self.b[name][0]
            self.held[name] = accumulators
            self.state[name] = [[sat(shr(a, guard), bits) for a in row] for row in accumulators]
        for name, asked in changes.items():
            moved = [sat(w + a, self.w[name][0]) for w, a in zip(self.tensors[name].flat, asked.flat, strict=True)]
            self.tensors[name] = np.array(moved, dtype=object).reshape(asked.shape)
