"""Fixtures of the folders whose tests run on one thread with a known seed."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing that torch.compile kept from other tests, nor for them."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
