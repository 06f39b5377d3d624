"""Run the scripts that docs/questions.md names, and put what they print below each command.

python examples/questions/write_page.py [NAME …]
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "questions.md"
BLOCK = re.compile(r"^( *)```\n\1\$ python examples/questions/(\w+)\.py\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def output(name: str) -> str:
    """What a script prints. Raises CalledProcessError where it fails."""
    command = [sys.executable, str(ROOT / "examples" / "questions" / f"{name}.py")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout


def filled(page: str, run: Callable[[str], str], names: list[str]) -> str:
    """The page with the outputs of these scripts anew; of all that it names, where none is named."""

    def block(match: re.Match[str]) -> str:
        name = match[2]
        text = run(name) if not names or name in names else match[3]
        return f"```\n$ python examples/questions/{name}.py\n{text}```"

    return BLOCK.sub(block, page)


def main() -> None:
    """Rewrite the page. Raises SystemExit for a script that it does not name."""
    page = PAGE.read_text(encoding="utf-8")
    names = sys.argv[1:]
    if unknown := set(names) - {m[2] for m in BLOCK.finditer(page)}:
        raise SystemExit(f"docs/questions.md names no script {', '.join(sorted(unknown))}")
    PAGE.write_text(filled(page, output, names), encoding="utf-8")


if __name__ == "__main__":
    main()
