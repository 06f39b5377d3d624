"""DistributedDataParallel averages gradients of calls that go through it; others stay what each process has found."""

from __future__ import annotations

import weakref

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from pccompile.diagnostics import CompileError


class Wrapped:
    """The compiled modules that DistributedDataParallel holds."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind
        self.modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        register_module_module_registration_hook(self.note)

    def note(self, parent: nn.Module, name: str, module: nn.Module | None) -> None:
        """Remember what DistributedDataParallel has been given."""
        if isinstance(parent, DistributedDataParallel) and module is not None:
            self.modules.update(m for m in module.modules() if isinstance(m, self.kind))

    def refuse_around(self, module: nn.Module, name: str) -> None:
        """Raise CompileError where `module` is held and called by `name` from outside, to learn."""
        if module not in self.modules or not torch.is_grad_enabled():
            return
        if DistributedDataParallel._get_active_ddp_module() is None:
            raise CompileError(
                f"{name} was called around DistributedDataParallel, which would not average its gradients",
                hint=f"wrap a module whose forward returns pc.{name}(...), and call DistributedDataParallel itself",
            )
