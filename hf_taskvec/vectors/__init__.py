"""Task vectors: named deltas with their provenance, their files, and the checkpoints they come from and go to."""
