"""Tiny modules on each of which some other predictive-coding code gets a gradient silently wrong."""

from zoo.case import Case
from zoo.traps_flow import FLOW
from zoo.traps_interface import INTERFACE
from zoo.traps_kinks import KINKS
from zoo.traps_shape import SHAPE
from zoo.traps_sharing import SHARING
from zoo.traps_state import STATE

TABLES = (FLOW, SHARING, STATE, SHAPE, KINKS, INTERFACE)
TRAPS: dict[str, Case] = {name: case for table in TABLES for name, case in table.items()}

if len(TRAPS) != sum(map(len, TABLES)):
    raise ValueError("two traps share a name")
