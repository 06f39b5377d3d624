"""Memory while a file is read: no more than three times its size."""

from __future__ import annotations

import onnx_memory
import pytest


@pytest.mark.slow
def test_reading_and_compiling_take_at_most_three_times_the_file(tmp_path):
    found = {(name, stage): times for name, stage, times in onnx_memory.ratios(tmp_path, 100)}
    assert len(found) == 6
    assert all(times < onnx_memory.LIMIT for times in found.values()), found
