"""Experiments on the method: what the theory says, and how its arms are measured."""
