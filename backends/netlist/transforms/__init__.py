"""Passes on netlists: functions from a netlist to one that computes and learns the same in another form."""
