"""Models: CLIP bases, and the zero-shot classifier that a vision tower is trained and measured as."""
