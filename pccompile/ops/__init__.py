"""Operations, one file a family. Importing this package registers all of them."""

from pccompile.ops import (
    activations,
    alignment,
    composite,
    control,
    determinants,
    elementwise,
    fake_quantisation,
    fills,
    functions,
    indexing,
    lengths,
    linear,
    multilinear,
    packed,
    paths,
    piecewise_constant,
    pointwise,
    random,
    recurrent,
    resampling,
    selection,
    special,
    spectral,
    strided,
    tensor_split,
)
from pccompile.ops.backward import Backward
from pccompile.ops.builder import Builder
from pccompile.ops.elementwise import Formula
from pccompile.ops.registry import OPS, Family, OpDef, define, definition
from pccompile.ops.signatures import bind, overload, result_name, schema
from pccompile.ops.trace import decompose, is_composite, traced_rule
from pccompile.ops.typer import Typer
from pccompile.ops.user import user_elementwise, user_linear
