"""Boundary-aware losses for semantic segmentation: the reference implementation of SEMEDA."""
__version__ = "0.1.0"
