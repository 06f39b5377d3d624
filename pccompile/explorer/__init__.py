"""The explorer: a model in predictive-coding form, and what inference does with a batch, as one offline page."""

from pccompile.explorer.circuit import explore_circuit
from pccompile.explorer.explore import Exploration, check_page, explore
