"""A model that no capture holds whole: Dynamo cuts it where it must, and each piece is a program of its own.

Between the pieces Python runs as it is, and autograd hands the errors of one piece to the next. So the whole learns by
the gradients of its pieces' algorithm where these are backpropagation's: what is equal piece by piece is equal.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from pccompile.analysis.compare import Checked
from pccompile.diagnostics import CompileError, listing
from pccompile.frontends.capture import exported_elsewhere
from pccompile.frontends.objects import open_objects
from pccompile.passes.roles import NO_ROLES, Roles
from pccompile.pipeline import Hook, Options
from pccompile.runtime.autograd_function import NODES
from pccompile.runtime.comparison import tensors_of
from pccompile.runtime.derivative_guards import opaque, refuse_transforms
from pccompile.runtime.derivative_reads import DerivativeReads, reads_in_pieces
from pccompile.runtime.losses import loss_of
from pccompile.runtime.module import CompiledModule, Criterion
from pccompile.runtime.torch_compile import OPTIONS, Piece, PieceProgram, program_of

FORMS = 64
"""So many forms of a function are compiled, one for each path and kind of arguments; further ones run as they are."""
EAGER = "Dynamo leaves a loop to Python that is decided by numbers; a function or module of your own in it is a piece"
UNCHECKED = "not compared with eager torch: the model has hooks, which a run on the example would run once more"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class ModuleInPieces(CompiledModule):
    """`model` with a program for each piece that Dynamo finds in it while it runs.

    A call that takes another path, or arguments of another form, compiles the pieces that are new.
    """

    kind: type[Piece] = Piece
    """What a piece is compiled to."""
    comparison: Checked | None = None
    left: tuple[str, ...] = ()

    def __init__(
        self, model: nn.Module, options: Options, loss: Criterion | None, hook: Hook | None, check: bool
    ) -> None:
        super().__init__(model, options, loss, hook=hook, check=check)
        self._programs: list[PieceProgram] = []
        self._run_by_dynamo: Callable[..., Any] | None = None
        self._looked = -1
        self._reads: DerivativeReads | None = None
        self._layers, self._cut = Layers(()), False

    def cut_layers(self) -> None:
        """Let layers of torch.nn be pieces, too, where Dynamo leaves what calls them to Python."""
        self._cut, self._layers = True, Layers(layers_of(self.__dict__["model"]))

    def _share(self, model: nn.Module) -> None:
        super()._share(model)
        if self.__dict__.get("_cut"):
            self.cut_layers()

    def _anew(self) -> dict[str, Any]:
        return {**super()._anew(), "_programs": [], "_run_by_dynamo": None, "_looked": -1, "_reads": None}

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces that have been compiled, in the order in which they were met; each is a compiled module."""
        return tuple(piece for program in self._programs for piece in program.compiled)

    @property
    def checked(self) -> Checked | None:
        """What was compared with eager torch on the example: outputs and gradients of the whole."""
        return self.comparison

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: where the pieces are, and what stays with eager torch."""
        said = dict.fromkeys(note for piece in self.pieces for note in piece.notes)
        count = f"compiled in pieces, {len(self.pieces)} up to now: what lies between them runs as it is"
        return (count, *note_on(self.left), *(self.comparison.notes if self.comparison else ()), *said)

    @opaque
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, each piece with predictive coding as its backward pass."""
        model: nn.Module = self.__dict__["model"]
        if not torch.is_grad_enabled() or (torch.compiler.is_exporting() and not exported_elsewhere()):
            return model(*args, **kwargs)  # without gradients the model is its own program
        refuse_transforms(model, args, kwargs)
        open_objects((args, kwargs))
        with self._layers.own():
            outputs = self._dynamo()(*args, **kwargs)
        open_objects(outputs)
        if self._looked != len(self._programs):  # a path that no call has taken before
            self._look(outputs)
        if self._reads is not None:
            self._watch(outputs)
        return outputs

    def _watch(self, outputs: Any) -> None:
        """Compare what custom backwards may read, before errors flow back, with what it is now."""
        if self._reads is not None and not self._reads.hold():
            self._reads = reads_in_pieces(self.__dict__["model"])
        reads = self._reads
        for node in {o.grad_fn for o in tensors_of(outputs) if o.grad_fn is not None} if reads else ():
            node.register_prehook(lambda grads, reads=reads: reads.refuse_changes())

    def _look(self, outputs: Any) -> None:
        """Say once of each parameter that no piece holds what reads it on the path that led to these outputs."""
        model: nn.Module = self.__dict__["model"]
        names = left_to_autograd(tensors_of(outputs), dict(model.named_parameters()))
        if new := tuple(name for name in names if name not in self.left):
            self.left = (*self.left, *new)
            warnings.warn(f"{type(model).__name__}: {note_on(new)[0]}", stacklevel=6)
        self._looked, self._reads = len(self._programs), reads_in_pieces(model)

    def _dynamo(self) -> Callable[..., Any]:
        if self._run_by_dynamo is None:
            how: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": FORMS}
            run = torch.compile(self.__dict__["model"], backend=self._compile_piece, **how)
            self.__dict__["_run_by_dynamo"] = run  # a module, which is none of the model's
        found: Callable[..., Any] = self.__dict__["_run_by_dynamo"]
        return found

    def _compile_piece(self, piece: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        del example_inputs
        how = {name: getattr(self.options, name) for name in OPTIONS} | dict(self.options.settings)
        program = program_of(piece, {**how, "hook": self._hook, "check": self._check}, self.kind)
        self._programs.append(program)
        return program.run

    def loss_by(
        self, criterion: Criterion | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any
    ) -> Tensor:
        """As `loss`, by another criterion, of what the pieces return."""
        return loss_of(self(*args, **kwargs), criterion, target)

    # what is of one program

    def _refuse(self, what: str) -> CompileError:
        hint = f"pc.pieces has {len(self.pieces)} compiled modules, each of which has it"
        return CompileError(f"{type(self.__dict__['model']).__name__} is compiled in pieces, and {what}", hint=hint)

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Raises CompileError: no one program is behind a call."""
        raise self._refuse("this is asked of one program")

    def program_for(
        self, args: Any, kwargs: dict[str, Any], target: Any, roles: Roles = NO_ROLES, loss: Criterion | None = None
    ) -> Any:
        """Raises CompileError: no one program is behind a call."""
        raise self._refuse("this is asked of one program")

    @property
    def compiled(self) -> Any:
        """Raises CompileError: no one program is behind a call."""
        raise self._refuse("this is asked of one program")

    def state(self) -> dict[str, Tensor]:
        """Raises CompileError: each piece has tables of its own."""
        raise self._refuse("each piece has a file and tables of its own (save_pieces)")


def left_to_autograd(outputs: list[Tensor], named: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of those tensors that autograd itself has the gradients of, and no program, behind these outputs."""
    names = {id(t): name for name, t in named.items()}
    seen, left, stack = set[Any](), dict[str, None](), [o.grad_fn for o in outputs if o.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for child in _children(node):
            leaf = getattr(child, "variable", None)
            if leaf is None:
                stack.append(child)
            elif node.name() not in NODES and id(leaf) in names:
                left[names[id(leaf)]] = None
    return tuple(name for name in named if name in left)


def _children(node: Any) -> Iterator[Any]:
    return (child for child, _ in node.next_functions if child is not None)


def note_on(names: tuple[str, ...]) -> tuple[str, ...]:
    """What is said of parameters whose gradients autograd itself has."""
    if not names:
        return ()
    return (f"autograd itself has the gradients of {listing(names)}: {EAGER}",)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of torch.nn with parameters in a model, of nested ones the outermost, each once."""
    seen: set[int] = set()
    stack = [module]
    while stack:
        child = stack.pop()
        if id(child) in seen:
            continue
        seen.add(id(child))
        if not type(child).__module__.startswith("torch.nn.") or isinstance(child, CONTAINERS):
            stack += reversed(list(child.children()))
        elif "forward" not in child.__dict__ and next(child.parameters(), None) is not None:
            yield child


class Layers:
    """The layers of a model, with the functions that run them in its pieces.

    Dynamo compiles no function of torch's own by itself. Within a call, such a layer is run by a function of ours, each
    of a code of its own, so that Dynamo counts its forms apart.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.forwards = [(layer, _forward(layer, i)) for i, layer in enumerate(layers)]

    @contextmanager
    def own(self) -> Iterator[None]:
        """Within: the layers are run by these functions."""
        for layer, forward in self.forwards:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in self.forwards:
                layer.__dict__.pop("forward", None)


def _forward(layer: nn.Module, number: int) -> Any:
    """What runs a layer, with a code of its own."""
    kind = type(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return kind.forward(layer, *args, **kwargs)

    code = forward.__code__.replace(co_name=f"layer_{number}")
    return types.FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
