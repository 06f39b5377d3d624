"""What can be taught to the compiler: operators of your own, of torch and of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pccompile.ops import user_elementwise, user_linear


def register_elementwise(op: Any, formula: Callable[..., Any]) -> None:
    """Teach the compiler a torch operator of your own by one sympy expression.

    op: what `torch.library.custom_op` returns. formula: from sympy symbols, one a tensor argument, to an expression,
    such as `lambda x: x * sympy.tanh(sympy.log(1 + sympy.exp(x)))`. The derivative, the local rule and the generated
    code follow; unstable textbook forms are replaced by stable ones. Raises TypeError and ValueError.
    """
    user_elementwise(op, formula)


def register_linear(op: Any, adjoint: Callable[..., Tensor]) -> None:
    """Teach the compiler a torch operator of your own that is linear in its first argument, by its adjoint.

    op: what `torch.library.custom_op` returns. adjoint: a torch function of the error of the result and the operator's
    other arguments, such as `lambda error, step: ...`; a parameter called `shape` is given the first argument's shape.
    It is traced into operations when a model is compiled. Raises TypeError.
    """
    user_linear(op, adjoint)


def register_onnx(*names: str, domain: str, weights: tuple[int, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that teaches the importer ONNX operators of your own domain by one torch function.

    The function takes the node, whose attributes are `node.get("alpha", 1.0)`, and the node's inputs, each annotated
    `torch.Tensor` (`torch.Tensor | None` where it may be absent). weights: inputs that are learnable even where a file
    holds them as constants. Raises TypeError for another annotation, ValueError for the domain of ONNX itself.
    """
    if domain in ("", "ai.onnx"):
        raise ValueError("operators of ONNX itself are not redefined; use a domain of your own")
    from pccompile.frontends.onnx.registry import operator

    return operator(*names, domain=domain, weights=weights)
