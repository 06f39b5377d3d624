"""Inference algorithms: PCGraph to Program, one file each. An algorithm is data: update equations in phases.

Every file here that has an `ALGORITHM` is one; `register` takes others, from outside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from pccompile.algorithms.record import Algorithm, Choice, options_of, setting

_known: dict[str, Algorithm] = {}
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(_known)
"""All algorithms by name."""


def register(algorithm: Algorithm) -> Algorithm:
    """Make `algorithm` one that `compile(..., algorithm=)` and the command line know. Raises ValueError for a name
    that is taken.
    """
    if algorithm.name in _known:
        raise ValueError(f"there is an algorithm {algorithm.name} already")
    _known[algorithm.name] = algorithm
    return algorithm


for _file in pkgutil.iter_modules(__path__):
    _found = getattr(importlib.import_module(f"{__name__}.{_file.name}"), "ALGORITHM", None)
    if isinstance(_found, Algorithm):
        register(_found)
