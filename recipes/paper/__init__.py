"""The experiments behind `recipes/reproduce_paper.py`: each writes JSON once, the report reads it."""
