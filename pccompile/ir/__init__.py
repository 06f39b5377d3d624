"""Three frozen, name-based data structures: Graph (operations), PCGraph (vertices), Program (a schedule)."""

from pccompile.ir.energy import FLAT, Energy
from pccompile.ir.fragment import Fragment, lengths
from pccompile.ir.graph import (
    DEVICE,
    Arg,
    Dim,
    Graph,
    Node,
    Ref,
    Source,
    TensorType,
    Type,
    live,
    map_refs,
    refs,
    verify,
)
from pccompile.ir.lasting import LASTING, Lasting
from pccompile.ir.pc import ALWAYS, ERROR, Condition, Decision, Feedback, Output, PCGraph, Role, Vertex, verify_local
from pccompile.ir.program import Argument, Do, Exchange, ForEach, Program, Repeat, Step, Until, Update, flat, steps_of
from pccompile.ir.verify_program import verify_program
