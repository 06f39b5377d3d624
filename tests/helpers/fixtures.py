"""Fixtures of the folders whose tests run on one thread with a known seed."""

import logging
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


@pytest.fixture
def silent_logs() -> Iterator[None]:
    """Nothing of what torch logs where it cuts a program or gives up on it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
