"""Fixtures that all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("fixed")  # the same examples at each run; --hypothesis-profile=random draws others

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the code prints now as the expectation")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked quick(n), n stay quick, evenly spread; the others become slow."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("quick") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        mark = several[0].get_closest_marker("quick")
        assert mark is not None
        count = min(mark.args[0], len(several))
        kept = {i * len(several) // count for i in range(count)}
        for i, item in enumerate(several):
            if i not in kept:
                item.add_marker(pytest.mark.slow)


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
