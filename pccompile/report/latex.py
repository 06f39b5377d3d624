r"""The equations of a model in LaTeX, printed from its vertices and its program.

`v` is a vertex's value, `\hat v` what its parents predict for it, `\varepsilon` its error; `W`, `b` and `\theta` are
weights, biases and other parameters, `\eta` the rate. The names below them are the model's own. KaTeX and LaTeX with
amsmath read all of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pccompile.ir import Do, ForEach, Node, Program, Ref, Repeat, Step, Vertex, flat
from pccompile.ir.equations import names, parse
from pccompile.ops import definition, latex
from pccompile.ops.equations import short, working
from pccompile.ops.latex import Tex, minus, named, plain, times, total, transposed
from pccompile.report.tables import count
from pccompile.runtime.module import CompiledModule

LETTERS = {
    "value": "v",
    "error": r"\varepsilon",
    "prediction": r"\hat v",
    "minus_error": r"-\varepsilon",
    "force": "f",
    "sent": "s",
    "held": "h",
    "multiplier": r"\lambda",
    "rate": r"\eta",
    "noise": r"\xi",
    "given": "v^{*}",
    "zero": "0",
    "seed": "-1",
    "send": r"-\tfrac{\partial E}{\partial \hat v}",
    "hold": r"\tfrac{\partial E}{\partial v}",
    "clamp": r"-\tfrac{\partial L}{\partial \hat v}",
}
ENDINGS = {"weight": "W", "bias": "b"}
LONGEST = 360
"""So many characters of a prediction; of a longer one only the operations are named."""
MOST = 8
"""So many children whose messages are written one by one."""
SIGNS: Mapping[type[ast.cmpop], str] = {ast.Gt: ">", ast.GtE: r"\ge", ast.Lt: "<", ast.LtE: r"\le"}


@dataclass(frozen=True)
class Equation:
    """One line about a vertex. role: predicts, settles, sends or learns; to: the parent or the parameter's path."""

    role: str
    tex: str
    to: str = ""
    when: str = ""


class Equations:
    """The equations of one program. own: the vertex that they are of goes without its name."""

    def __init__(self, program: Program, own: bool = True) -> None:
        self.program, self.pc, self.own = program, program.pc, own
        self.graph, self.children = program.pc.graph, program.pc.children()
        self.moving = bool(program.state)
        self.vertices = {v.name: v for v in self.pc.vertices}
        self.dos: dict[str, list[tuple[Do, str]]] = {}
        for do, when in _placed(program.infer):
            self.dos.setdefault(do.vertex, []).append((do, when))
        self.pulling = {d.vertex: d for d in flat(program.infer) if "pull" in names(parse(d.equation))}
        self.learning = {d.vertex: d for d in flat((*program.infer, *program.learn)) if d.slot == "gradient"}

    def of(self, v: Vertex) -> Iterator[Equation]:
        """All equations of a vertex: what it predicts, how it settles, what it sends and what its parameters learn."""
        if v.prediction:
            yield Equation("predicts", f"{self.slot('prediction', v.name, v)} = {self.prediction(v).text}")
        yield from self.settling(v)
        for p in v.messages:
            if p in self.vertices:
                yield Equation("sends", self.message(v, p, v, self.pulling.get(p)).text, p)
        for p in v.messages:
            if p in self.graph.params and p in self.learning:
                yield Equation("learns", self.learned(p, v), str(self.graph.origin.get(p, p)))

    def slot(self, slot: str, owner: str, of: Vertex | None) -> str:
        """A slot of a vertex, as the equations of `of` write it."""
        letter = LETTERS.get(slot) or rf"\textsf{{{plain(slot)}}}"
        return letter if of is not None and self.own and owner == of.name else named(letter, owner)

    def operand(self, ref: Ref, moved: bool | None = None) -> Tex:
        """A value, a parameter or an input. moved: as inference has it now, not as it was predicted."""
        name = str(ref)
        if name in self.vertices:
            moved = self.moving if moved is None else moved
            return Tex(named("v" if moved else r"\hat v", name))
        path = str(self.graph.origin.get(name, name))
        if name in self.graph.params:
            module, _, last = path.rpartition(".")
            return Tex(named(ENDINGS[last], module) if last in ENDINGS and module else named(r"\theta", path))
        return Tex(rf"\textsf{{{plain(path)}}}")

    def prediction(self, v: Vertex) -> Tex:
        """v̂ of a vertex as a function of its parents."""
        done, shown = dict[str, Tex](), {n.name for n in working(v)}
        for n in v.prediction:
            done[n.name] = self._node(n, shown, self._at(done, None))
        text = done.get(str(v.result), Tex("0"))
        if len(text.text) <= LONGEST:
            return text
        operations = r" \circ ".join(latex.operator(short(n.op)) for n in reversed(working(v)))
        given = ", ".join(self.operand(Ref(p)).text for p in v.parents[:MOST])
        return Tex(rf"\left({operations}\right)\left({given}\right)", 1)

    def _node(self, n: Node, shown: set[str], operand: latex.Operand) -> Tex:
        """What a node computes; what only moves entries about is passed over, unless it is all that a vertex does."""
        moves = not definition(n.op).transposes and n.name not in shown
        sources = [a for a in n.args.values() if isinstance(a, Ref)]
        return operand(sources[0]) if moves and sources else latex.computed(n, operand)

    def message(self, child: Vertex, parent: str, of: Vertex | None = None, do: Do | None = None) -> Tex:
        """What `child` sends to `parent`, Jᵀ times what the update equation `do` carries."""
        e = self._carried(child, of, do)
        if parent in child.feedback and parent in self.vertices:
            return times(transposed(Tex(rf"\textsf{{{plain(child.feedback[parent])}}}")), e)
        chain = _chain(child, parent)
        if chain is None:
            result = named(r"\hat v", child.name) if not (self.own and of is child) else r"\hat v"
            to = self.operand(Ref(parent)).text
            return times(Tex(rf"\left(\frac{{\partial {result}}}{{\partial {to}}}\right)^{{\!\top}}"), e)
        moved = do.at == "value" if do else self.moving
        nodes, done, shown = [*child.prediction], dict[str, Tex](), {n.name for n in working(child)}
        for n in nodes:
            done[n.name] = self._node(n, shown, self._at(done, moved)) if len(nodes) < 2 * MOST else named_value(n)
        done[str(child.result)] = Tex(self.slot("prediction", child.name, of if of is child else None))
        if parent in self.vertices:  # a message to a value reads what stands in the place of a weight
            done |= {w: self._fed_back(w, letter) for w, letter in child.feedback.items()}
        for n, argument in reversed(chain):
            e = latex.adjoint(n, argument, e, self._at(done, moved), child.how.get(n.name) == "dropped")
        return e

    def _fed_back(self, weight: str, letter: str) -> Tex:
        """What messages read in the place of a weight."""
        return Tex(named(rf"\textsf{{{plain(letter)}}}", str(self.graph.origin.get(weight, weight)).rpartition(".")[0]))

    def _at(self, done: Mapping[str, Tex], moved: bool | None) -> latex.Operand:
        return lambda r: done[str(r)] if str(r) in done else self.operand(r, moved)

    def _carried(self, child: Vertex, of: Vertex | None, do: Do | None) -> Tex:
        """What a child's message is made of: its error, or a weighted sum of its slots."""
        own = of if of is child else None
        carries = do.carries if do else ("sent" if child.energy else "error")
        if isinstance(carries, str):
            return Tex(self.slot(carries, child.name, own), 3 if carries == "minus_error" else 0)
        weights = carries.get(child.name, {})
        return total([times(Tex(f"{w:g}"), Tex(self.slot(s, child.name, own))) for s, w in weights.items()])

    def settling(self, v: Vertex) -> Iterator[Equation]:
        """The update equations of a vertex, each once, as the program has them."""
        known: set[tuple[str, str]] = set()
        for do, when in self.dos.get(v.name, ()):
            trivial = do.equation == "predict" or (do.slot, do.equation) in known or do.slot == "gradient"
            if trivial:
                continue
            known.add((do.slot, do.equation))
            sign = r"\leftarrow" if when == "each step" and do.slot in do.equation else "="
            right = self.arithmetic(parse(do.equation), do, v)
            yield Equation("settles", f"{self.slot(do.slot, v.name, v)} {sign} {right.text}", when=when)

    def learned(self, p: str, v: Vertex | None = None) -> str:
        """The gradient of a parameter, the sum over the vertices that read it."""
        do = self.learning[p]
        right = self.arithmetic(parse(do.equation), do, v)
        return rf"\nabla_{{\!{self.operand(Ref(p)).text}}} = {right.text}"

    def pull(self, do: Do, v: Vertex | None) -> Tex:
        """The sum of all messages to a vertex or a parameter."""
        senders = self.children[do.vertex]
        if not isinstance(do.carries, str):
            senders = tuple(c for c in senders if c.name in do.carries)
        if len(senders) > MOST:
            what = plain(count(len(senders), "child", "children"))
            return Tex(rf"\textstyle\sum_{{\textsf{{{what}}}}} J^{{\top}} \varepsilon", 1)
        return total([self.message(c, do.vertex, v, do) for c in senders])

    def arithmetic(self, e: ast.expr, do: Do, v: Vertex | None) -> Tex:
        """The right-hand side of an update equation."""
        match e:
            case ast.Name(id="pull"):
                return self.pull(do, v)
            case ast.Name(id="predict"):
                return self.prediction(v) if v else Tex(r"\hat v")
            case ast.Name(id=name):
                return self._name(name, do, v)
            case ast.Constant(value=value):
                return Tex(f"{value:g}" if isinstance(value, int | float) else "?")
            case ast.UnaryOp(operand=inner):
                return minus(self.arithmetic(inner, do, v))
            case ast.Compare(left=left, ops=[comparison], comparators=[right]):
                sides = self.arithmetic(left, do, v).text, self.arithmetic(right, do, v).text
                return Tex(f"{sides[0]} {SIGNS[type(comparison)]} {sides[1]}", 3)
            case ast.Call(func=ast.Name(id=name), args=args):
                given = ", ".join(self.arithmetic(a, do, v).text for a in args)
                return Tex(rf"\sqrt{{{given}}}" if name == "sqrt" else rf"{latex.operator(name)}\left({given}\right)")
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(self.arithmetic(left, do, v), op, self.arithmetic(right, do, v))
        raise AssertionError(ast.dump(e))

    def _name(self, name: str, do: Do, v: Vertex | None) -> Tex:
        """A slot, an argument or a term."""
        if name in self.program.numbers:
            return Tex(LETTERS.get(name) or rf"\textsf{{{plain(name)}}}")
        if name in ("zero", "seed", "noise", "send", "hold", "clamp", "given"):
            return Tex(LETTERS[name], 3 if LETTERS[name].startswith("-") else 0)
        return Tex(self.slot(name, do.vertex, v), 3 if name == "minus_error" else 0)


def named_value(n: Node) -> Tex:
    """A value within a vertex, by its name."""
    return Tex(named("u", n.name))


def _binary(left: Tex, op: ast.operator, right: Tex) -> Tex:
    match op:
        case ast.Add():
            return total([left, right])
        case ast.Sub():
            return Tex(f"{left.text} - {right.within(2)}", 3)
        case ast.Mult():
            return times(left, right)
        case ast.Div():
            return Tex(rf"\frac{{{left.text}}}{{{right.text}}}")
    return Tex(f"{left.within(0)}^{{{right.text}}}")


def _placed(steps: tuple[Step, ...], when: str = "") -> Iterator[tuple[Do, str]]:
    """Every update equation with when it runs: at first, each step, or behind the steps."""
    loops = [i for i, s in enumerate(steps) if not isinstance(s, Do)]
    for i, s in enumerate(steps):
        if isinstance(s, Do):
            place = when or ("" if not loops else "at first" if i < loops[0] else "at last" if i > loops[-1] else "")
            yield s, place
        elif isinstance(s, Repeat | ForEach):
            yield from _placed(s.body, "each step")


def _chain(child: Vertex, parent: str) -> list[tuple[Node, str]] | None:
    """The operations from a parent to what its child predicts, each with the argument by which it is reached.

    None where there is more than one way, so that the message is a sum.
    """
    reached: list[str] = [parent]
    chain: list[tuple[Node, str]] = []
    for n in child.prediction:
        by = [k for k, a in n.args.items() if isinstance(a, Ref) and str(a) in reached]
        nested = any(str(r) in reached for r in n.inputs) and not by
        if not by and not nested:
            continue
        if nested or len(by) > 1 or str(n.args[by[0]]) != reached[-1]:
            return None
        chain.append((n, by[0]))
        reached.append(n.name)
    return chain if reached[-1] == str(child.result) and len(chain) else None


def document(pc: CompiledModule) -> str:
    r"""All equations of a compiled model as one `align*` environment, ready to paste where amsmath is loaded."""
    equations = Equations(pc.compiled.program, own=False)
    lines = [
        r"\begin{align*}",
        rf"% {plain(pc.options.algorithm)}, {count(len(pc.compiled.pc.vertices), 'vertex', 'vertices')}",
    ]
    for v in pc.compiled.pc.vertices:
        lines.append(f"% {plain(v.name)}")
        for e in equations.of(v):
            if e.role == "sends":
                continue  # stands where it is received
            left, sign, right = e.tex.partition(r" \leftarrow " if r" \leftarrow " in e.tex else " = ")
            note = rf" && \textsf{{{plain(e.when)}}}" if e.when else ""
            lines.append(rf"{left} &{sign}{right}{note} \\")
    return "\n".join([*lines, r"\end{align*}"])
