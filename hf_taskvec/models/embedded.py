"""The base that comes with the package, without what it takes to load it."""

from __future__ import annotations

from pathlib import Path

TINY_CLIP = Path(__file__).parent / "tiny_clip"
EMBEDDED = "hf-taskvec/tiny-clip"  # its name in provenance
