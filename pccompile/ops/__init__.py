"""Operations, one file a family. Importing this package registers all of them."""

from pccompile.ops import (
    activations,
    alignment,
    composite,
    control,
    determinants,
    elementwise,
    fills,
    functions,
    indexing,
    linear,
    multilinear,
    pieces,
    pointwise,
    random,
    recurrent,
    resampling,
    selection,
    special,
    spectral,
    steps,
    strided,
)
from pccompile.ops.backward import Backward
from pccompile.ops.builder import Builder
from pccompile.ops.elementwise import Formula
from pccompile.ops.registry import OPS, Family, OpDef, bind, define, family_of, overload, result_name, schema
from pccompile.ops.trace import decompose, is_composite, traced_rule
from pccompile.ops.typer import Typer
from pccompile.ops.user import user_elementwise, user_linear

__all__ = [
    "OPS",
    "Backward",
    "Builder",
    "Family",
    "Formula",
    "OpDef",
    "Typer",
    "activations",
    "alignment",
    "bind",
    "composite",
    "control",
    "decompose",
    "define",
    "determinants",
    "elementwise",
    "family_of",
    "fills",
    "functions",
    "indexing",
    "is_composite",
    "linear",
    "multilinear",
    "overload",
    "pieces",
    "pointwise",
    "random",
    "recurrent",
    "resampling",
    "result_name",
    "schema",
    "selection",
    "special",
    "spectral",
    "steps",
    "strided",
    "traced_rule",
    "user_elementwise",
    "user_linear",
]
