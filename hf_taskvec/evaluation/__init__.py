"""Evaluation: accuracies of models on tasks, what is chosen by them, and their tables and figures."""
