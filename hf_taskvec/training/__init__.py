"""Training: `transformers.Trainer` runs that make task vectors."""
