"""From a graph of simple operations to the value units of a circuit."""

from pccompile.backends.netlist.lower import complex, custom, elementwise, linear, multilinear, selection, wiring
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import has_circuit
