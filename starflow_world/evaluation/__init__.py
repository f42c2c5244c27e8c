"""Evaluation of worlds against real episodes of their environments."""
