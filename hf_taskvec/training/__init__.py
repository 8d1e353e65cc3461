"""Training: `transformers.Trainer` runs that make task vectors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # a trainer takes seconds to import
