"""Several tasks on one base: ways to keep their vectors, measured alike."""
