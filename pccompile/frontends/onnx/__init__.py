"""ONNX files as trainable modules: `load_onnx` reads one, `torch.export` then turns it into the dialect of the rest.

While the module runs, each ONNX node's operations are annotated (`torch.fx.traceback.annotate`), which survives
torch.export and `run_decompositions`: `node.meta["custom"]["onnx"]` holds the ONNX node's name and op_type, and the
module path, file and line that torch's own exporter had noted. `location_of(node)` reads it.
"""

from pccompile.frontends.onnx import (  # each enters its operators into the registry
    attention,
    casts,
    contributed,
    contributed_attention,
    control,
    convolution,
    detection,
    elementwise,
    images,
    labels,
    learned,
    linear,
    losses,
    normalise,
    pooling,
    quantised,
    random,
    recurrent,
    reduce,
    resize,
    select,
    sequence,
    shape,
    shape_arithmetic,
    signal,
    text,
    training,
    trees,
)
from pccompile.frontends.onnx.examples import randomize
from pccompile.frontends.onnx.input_types import InputType
from pccompile.frontends.onnx.load import load_onnx, unsupported
from pccompile.frontends.onnx.module import OnnxModule
from pccompile.frontends.onnx.runner import location_of
