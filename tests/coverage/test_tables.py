"""The tables of the coverage suites: figures may rise, not fall, and docs/coverage.md is what the tables say."""

import pytest

from coverage.driver import DRIVER, ROOT, fallen, recorded, table


@pytest.mark.parametrize("suite", recorded())
def test_no_figure_falls(suite: str) -> None:
    assert DRIVER.suite_of(suite).FLOORS, "a suite with a table keeps its figures"
    assert not fallen(suite)


@pytest.mark.parametrize("suite, kinds", [("torch", ()), ("models", ()), ("onnx", ("gradient",))])
def test_no_gradient_is_wrong(suite: str, kinds: tuple[str, ...]) -> None:
    assert not [r for r in table(suite) if r.status == "wrong" and (not kinds or r.kind in kinds)]


def test_the_document_is_what_the_tables_generate() -> None:
    assert (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8") == DRIVER.document(), (
        "run benchmarks/coverage.py again, or take its document as it is"
    )
