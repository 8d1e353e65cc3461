"""Pretraining of small CLIP bases."""
