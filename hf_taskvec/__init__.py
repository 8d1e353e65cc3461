"""Make, share, merge and study task vectors of CLIP ViT models."""

from importlib.metadata import version

import lazy_loader

from hf_taskvec.hub.publisher import Publishable as _Publishable

# Names stand in `__init__.pyi`, once. Each is imported when it is first used: a merge needs neither Transformers nor
# Datasets, which take seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("hf-taskvec")
_Publishable.find_publisher = staticmethod(lambda: __getattr__("push_to_hub"))
