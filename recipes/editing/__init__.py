"""Pages of what editing beyond addition does to real tasks."""
