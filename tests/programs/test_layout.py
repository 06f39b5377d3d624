"""Long lines of generated files: folded, they are the same program."""

from __future__ import annotations

import ast

import pytest

from pccompile.backends.torch.code import fill, template, text
from pccompile.backends.torch.layout import WIDTH, deleted, folded

LONG = ", ".join(f"argument_{i}" for i in range(14))
STATEMENTS = [
    ("x = ", f"kernel({LONG})"),
    ("x = ", f"kernel({LONG})[0].neg_()"),
    ("x += ", f"kernel({LONG})"),
    ("x = ", f"(kernel({LONG}) @ y).mul_(0.5)"),
    ("x = ", f"(first_of_two_long_names_{'a' * 40} @ second_of_two_long_names_{'b' * 40}).neg_()"),
    ("x = ", f"first_of_two_long_names_{'a' * 40} + second_of_two_long_names_{'b' * 40} * torch.cat([{LONG}], 1)"),
    ("x = ", f"first_of_two_long_names_{'a' * 40} * (second_of_two_long_names_{'b' * 40} - torch.cat([{LONG}], 1))"),
    ("x = ", f"torch.cat([kernel({LONG}), kernel({LONG}).reshape([2, 3])], 1)"),
    ("x = ", f"-kernel({LONG}, alpha=0.5)"),
    ("x = ", f"[kernel(error, {LONG}) for error, other in zip(first, second)]"),
    ("x = ", f'params["{"a" * 110}"]'),
    ("x = ", f'kernel({LONG}, params["a, (b] = c\\" \\\\"])'),
    ("", f"name_{'a' * 60}.addmm_(kernel({LONG}).t(), y)"),
]
EXPRESSIONS = [
    "(a + b) * c - d / (e * f)",
    "a - (b - c)",
    "-x ** 2",
    "(-x) ** -2",
    "(a > 0) & (b <= 1) | (c == 2)",
    "yes if a and not b else no",
    "(yes if p else no)(a, *b, c=1.5)",
    "x[:, 2:n + 1, None][0, ::2].t()",
    "[f(e) for e in errors]",
    "[e @ w for e, w in zip(a, b)]",
    '{"a": 1, "b": (1,)}',
    "(a if b else c) + 1",
    "a @ b @ (c @ d)",
    "not (a or b)",
]


@pytest.mark.parametrize("head, value", STATEMENTS)
def test_a_folded_statement_means_the_same(head: str, value: str) -> None:
    lines = folded(f"    {head}", ast.parse(value, mode="eval").body)
    line = f"    {head}{value}"
    assert ast.dump(ast.parse("\n".join(lines).lstrip())) == ast.dump(ast.parse(line.lstrip()))
    assert len(line) > WIDTH
    assert all(len(part) <= WIDTH for part in lines) or "params[" in line


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_a_printed_expression_is_the_same_tree(source: str) -> None:
    assert ast.dump(ast.parse(text(ast.parse(source, mode="eval").body))) == ast.dump(ast.parse(source))


def test_a_freed_list_means_the_same() -> None:
    names = [f"argument_{i}" for i in range(14)]
    lines = deleted(names, "    ")
    assert len(lines) > 1
    (statement,) = ast.parse("\n".join(lines).lstrip()).body
    assert [n.id for n in ast.walk(statement) if isinstance(n, ast.Name)] == names


def test_short_statements_stay() -> None:
    assert folded("    x = ", ast.Name("y")) == ["    x = y"]
    assert deleted(["x", "y"], "    ") == ["    del x, y"]


def test_a_template_is_filled() -> None:
    values = {"self": "x", "indices": "[i, None, k]", "p": "a + b"}
    parsed = {k: ast.parse(v, mode="eval").body for k, v in values.items()}
    for source, expected in (
        ("self[:, indices[2]]", "x[:, k]"),
        ("f(*indices, p)", "f(i, None, k, a + b)"),
        ("self * p", "x * (a + b)"),
        ("self.mul(p).p", "x.mul(a + b).p"),
    ):
        assert text(fill(template(source), parsed.get)) == expected
