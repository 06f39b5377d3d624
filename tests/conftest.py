"""Fixtures that all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the code prints now as the expectation")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`golden(text, suffix)`: text equals tests/golden/<the test's folder>/<the test's name><suffix>.

    With --update-golden it becomes that file's text.
    """

    def check(text: str, suffix: str = ".py") -> None:
        folder = TESTS / "golden" / request.path.parent.relative_to(TESTS)
        path = folder / (request.node.name.replace("[", "-").rstrip("]") + suffix)
        if request.config.getoption("--update-golden"):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.relative_to(TESTS)} is missing: run pytest --update-golden and review it"
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: pytest --update-golden, then review"

    return check
