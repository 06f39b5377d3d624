"""What torch.export has captured of one model: once for each form of call, and anew where the model has changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, ModelValueError, RuleError
from pccompile.frontends.autocast import current
from pccompile.frontends.capture import device_of
from pccompile.frontends.imported import Imported, Locate
from pccompile.frontends.process import capturing
from pccompile.frontends.signature import FREE, CaptureForm
from pccompile.frontends.subclasses import refuse_acting
from pccompile.pipeline import Hook, import_model, silent
from pccompile.runtime.derivative_guards import refuse_transforms
from pccompile.runtime.graph_call import register
from pccompile.runtime.loaded_program import Interface, Mismatch, flattened
from pccompile.runtime.model_state import ModelState
from pccompile.runtime.own_tensors import OwnTensors
from pccompile.runtime.paths import Path, Paths
from pccompile.runtime.program_cache import Captured, ProgramCache, learning, offsets
from pccompile.runtime.states import fits

MANY = 8
"""After so many captures for other lengths or types there is a warning."""
Call = tuple[Captured, dict[str, Tensor]]
"""The capture that a call fits, and the tensors of the call by name."""


class ModuleCaptures(OwnTensors):
    """Finds the capture for a call, or makes it.

    dynamic_shapes: as torch.export takes it, for the first capture. recapture: whether calls may have several forms.
    recaptures: why calls did not fit the captures before them, in order; a dimension that varies is free from then on,
    where the model allows that.
    """

    def __init__(self, dynamic_shapes: Any, locate: Locate | None, recapture: bool, hook: Hook | None) -> None:
        super().__init__()
        self._dynamic_shapes, self._locate, self._recapture = dynamic_shapes, locate, recapture
        self._hook: Hook = hook or silent
        self._cache = ProgramCache()
        self._free = FREE[0]
        self._paths: Paths | None = None
        self._asked: dict[pytree.TreeSpec, tuple[int, ...]] = {}
        self.recaptures: tuple[str, ...] = ()

    def _anew(self) -> dict[str, Any]:
        return {**super()._anew(), "_cache": ProgramCache(), "_name": "", "recaptures": ()}

    def _share(self, model: nn.Module) -> None:
        super()._share(model)
        self._name = register(self)  # a copy is found by a name of its own

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_hook": silent}

    def follow_paths(self) -> None:
        """Capture calls along the path that Python takes, with a program for each."""
        self._paths = Paths()

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The capture of the model as it is now that fits a call, and the call's tensors by name."""
        model: nn.Module = self.__dict__["model"]
        refuse_transforms(model, args, kwargs)
        leaves, spec = flattened(args, kwargs)
        refuse_acting((f"argument {i}", leaf) for i, leaf in enumerate(leaves) if type(leaf) is not Tensor)
        if spec in self._asked:
            ask([leaf for leaf in leaves if isinstance(leaf, Tensor)], self._asked[spec])
        path = self._paths.of(model, args, kwargs) if self._paths else ()
        captured, _ = self._find(leaves, spec, path)
        if captured is None:
            with capturing():
                captured, reason = self._find(leaves, spec, path)  # another thread may have been here
                if captured is None:
                    captured = self._capture(args, kwargs, reason, path)
        return captured, captured.interface.named(leaves)

    def _find(self, leaves: list[Any], spec: pytree.TreeSpec, path: Path) -> tuple[Captured | None, Mismatch | None]:
        """The capture for a call, or why those of this state of the model do not fit it."""
        model: nn.Module = self.__dict__["model"]
        state, reason = self._cache.state(model), None
        settings = self._settings(state, model, leaves)
        for captured in self._cache.captures:
            learns = captured.learning is None or captured.learning == learning(model, leaves)
            placed = captured.offsets is None or captured.offsets == offsets(model)
            here = captured.state is state and captured.imported.path == path
            if here and captured.settings == settings and learns and placed:
                reason = captured.interface.mismatch(leaves, spec)
                if not reason and fits(captured.imported, model):
                    return captured, None
        return None, reason

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: Mismatch | None, path: Path) -> Captured:
        """The model captured anew for a call that no capture fits for this reason. Raises CompileError."""
        captures = self._cache.captures
        if captures and not self._recapture:
            what = "this program was captured in one mode and dtype, and with or without autocast"
            what = reason.what if reason else what
            raise CompileError(what, hint="compile the nn.Module itself to call it in several forms")
        if self._paths:
            self._paths.admit(path, self.__dict__["model"], [c.imported.path for c in captures])
        try:
            varied = frozenset(v for c in captures for v in c.interface.varied(pytree.tree_leaves((args, kwargs))))
            form = CaptureForm(self._dynamic_shapes if not captures else None, varied=varied, path=path)
            imported = self._import(args, kwargs, form)
        except CompileError as e:
            if isinstance(e, ModelValueError) or reason is None or not reason.of_input:
                raise
            why = f"captured anew for this call: {e.problems[0].what}"
            raise CompileError(reason.what, e.problems[0].where, why) from e
        if reason is not None and reason.of_input:
            self._tell(reason)
        return self.adopt(imported, args, kwargs)

    def _tell(self, reason: Mismatch) -> None:
        """Count that a call has another form than all before; warn where that does not end."""
        self.recaptures = (*self.recaptures, reason.what)
        if len(self.recaptures) == MANY:
            warnings.warn(
                f"{type(self.__dict__['model']).__name__} was captured {MANY + 1} times for other lengths or types, "
                f"the last time because {reason.what}; pad inputs to a few lengths, or free that dimension by "
                "dynamic_shapes to see what stands against it",
                stacklevel=2,
            )

    def _import(self, args: tuple[Any, ...], kwargs: dict[str, Any], form: CaptureForm) -> Imported:
        """The model as a graph, for calls of this form, with what is free and what are states as is known by now."""
        model, known = self.__dict__["model"], replace(form, free=self._free, states=self._cache.places)
        try:
            imported = import_model(model, args, kwargs, known, self._locate, self._hook)
        except RuleError:
            if form.dynamic_shapes is not None or self._free == FREE[-1]:
                raise
            self._free = FREE[FREE.index(self._free) + 1]
            return self._import(args, kwargs, form)
        if imported.asked:  # as forward does in eager torch, before the call from now on
            leaves, spec = flattened(args, kwargs)
            self._asked[spec] = imported.asked
            ask([leaf for leaf in leaves if isinstance(leaf, Tensor)], imported.asked)
            return self._import(args, kwargs, form)
        return imported

    def _frees(self, captured: Captured) -> bool:
        """Whether dimensions are free in a captured model that nobody asked to be free."""
        dims = captured.imported.graph.dims.values()
        asked = self._dynamic_shapes is not None or not self._recapture
        return not asked and any(d.tensor in captured.imported.graph.inputs for d in dims)

    def _free_less(self, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
        """The model captured anew with fewer free dimensions: those of now stand in the way of a rule."""
        beyond_batch = any(d.axis for d in captured.imported.graph.dims.values())
        self._free = FREE[1] if self._free == FREE[0] and beyond_batch else FREE[-1]
        self._cache.remove(captured)
        form = CaptureForm(path=captured.imported.path)
        return self.adopt(self._import(args, kwargs, form), args, kwargs)

    def adopt(self, imported: Imported, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Captured:
        """Take an imported model as what calls of this form run."""
        model: nn.Module = self.__dict__["model"]
        self._cache.learn(imported)
        leaves, state = pytree.tree_leaves((args, dict(kwargs))), self._cache.state(model)
        settings = self._settings(state, model, leaves)
        flags = learning(model, leaves) if imported.learning else None
        places = offsets(model) if imported.absolute else None
        captured = Captured(state, settings, flags, places, imported, Interface.of(imported, leaves))
        self._cache.add(captured, model)
        return captured

    def _settings(self, state: ModelState, model: nn.Module, leaves: list[Any]) -> tuple[Any, ...]:
        """The settings of torch under which a call would run: autocast, and the dtype and device of what it makes.

        An exported program has types and devices in it, whatever the settings are.
        """
        autocast = current(state.device.type if state.device is not None else device_of(model, leaves))
        if not self._recapture:
            return (autocast,)
        asked = torch._C._len_torch_function_stack()  # the default device is one of the modes there
        return autocast, torch.get_default_dtype(), torch.get_default_device() if asked else None


def ask(tensors: list[Tensor], places: tuple[int, ...]) -> None:
    """Let some of the tensors of a call require a gradient."""
    for i in places:
        tensors[i].requires_grad_()
