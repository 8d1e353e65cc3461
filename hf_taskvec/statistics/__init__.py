"""Statistics: what a handful of images does inside a vision tower, kept so that others merge without the images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
