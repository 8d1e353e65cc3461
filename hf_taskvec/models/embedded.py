"""The bases that come with the package, without what it takes to load them."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "hf-taskvec/tiny-clip"  # loaded where no base is named: small enough for tests and first steps
FEATURE_CLIP = "hf-taskvec/feature-clip"  # features that tasks share, for measurements
EMBEDDED_BASES = {  # by their names in provenance, which are those of their repositories
    EMBEDDED: Path(__file__).parent / "tiny_clip",
    FEATURE_CLIP: Path(__file__).parent / "feature_clip",
}
TINY_CLIP = EMBEDDED_BASES[EMBEDDED]
