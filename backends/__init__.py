"""Backends: Program to text, one folder each."""
