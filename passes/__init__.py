"""Passes: Graph to Graph and Graph to PCGraph, one file each. A pass is pure; the pipeline verifies between passes."""
