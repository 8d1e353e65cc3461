"""Small subsets of public datasets: what `recipes/build_small_datasets.py` draws and writes."""
