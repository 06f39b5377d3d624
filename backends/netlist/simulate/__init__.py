"""Simulators of netlists."""
