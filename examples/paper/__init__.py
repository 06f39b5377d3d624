"""Millidge, Tschantz & Buckley (2020, arXiv:2006.04182) run anew: `python examples/reproduce_paper.py`."""
