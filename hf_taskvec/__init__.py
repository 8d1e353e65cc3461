"""Make, share, merge and study task vectors of CLIP ViT models."""

from importlib.metadata import version

import lazy_loader

# Names stand in `__init__.pyi`, once. Each is imported when it is first used: a merge needs neither Transformers nor
# Datasets, which take seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("hf-taskvec")
