"""Models as circuits of units that talk to their neighbours, and learn."""

from pccompile.backends.netlist.build import Lowerable, NetlistOptions, build
from pccompile.backends.netlist.losses import LOSSES, with_probabilities
from pccompile.backends.netlist.lower import has_circuit
from pccompile.backends.netlist.netlist import Netlist, Result
from pccompile.backends.netlist.session import Session
from pccompile.backends.netlist.simulate.asynchronous import Asynchrony
