"""Long lines of generated files: folded, they are the same program."""

from __future__ import annotations

import ast

import pytest

from pccompile.backends.torch.layout import WIDTH, folded

LONG = ", ".join(f"argument_{i}" for i in range(14))
LINES = [
    f"    x = kernel({LONG})",
    f"    x = kernel({LONG})[0].neg_()",
    f"    x += kernel({LONG})",
    f"    x = (kernel({LONG}) @ y).mul_(0.5)",
    f"    x = (first_of_two_long_names_{'a' * 40} @ second_of_two_long_names_{'b' * 40}).neg_()",
    f"    x = first_of_two_long_names_{'a' * 40} + second_of_two_long_names_{'b' * 40} * torch.cat([{LONG}], 1)",
    f"    x = torch.cat([kernel({LONG}), kernel({LONG}).reshape([2, 3])], 1)",
    f'    x = params["{"a" * 110}"]',
    f'    x = kernel({LONG}, params["a, (b] = c\\" \\\\"])',
    f"    del ({LONG})",
    f"    name_{'a' * 60}.addmm_(kernel({LONG}).t(), y)",
]


@pytest.mark.parametrize("line", LINES)
def test_a_folded_line_means_the_same(line: str) -> None:
    lines = folded(line)
    assert ast.dump(ast.parse("\n".join(lines).lstrip())) == ast.dump(ast.parse(line.lstrip()))
    assert len(line) > WIDTH
    assert all(len(part) <= WIDTH for part in lines) or "params[" in line


def test_short_lines_and_comments_stay() -> None:
    assert folded("    x = y") == ["    x = y"]
    assert folded("    # " + "a" * 200) == ["    # " + "a" * 200]
