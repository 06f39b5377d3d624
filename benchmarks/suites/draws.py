"""Random draws that two runs share: the n-th draw of one equals the n-th draw of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class SharedDraws(TorchDispatchMode):
    """Within: every operator that draws numbers does so from a seed of its own, counted from the first draw."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.count += 1
            torch.manual_seed(self.count)
        return func(*args, **(kwargs or {}))
