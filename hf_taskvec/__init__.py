"""Make, share, merge and study task vectors of CLIP ViT models."""

__version__ = "0.1.0"
