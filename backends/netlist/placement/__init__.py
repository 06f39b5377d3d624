"""Circuits on chips: which core holds what, and that no limit of the chip is broken."""

from pccompile.backends.netlist.placement.placement import Placement, place
from pccompile.backends.netlist.placement.verify import Use, measured, violations
