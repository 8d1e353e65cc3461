"""Weights: named tensors and the files they lie in."""
