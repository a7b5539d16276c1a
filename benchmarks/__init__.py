"""Scripts that measure what is claimed; their results are JSON files in `results`."""
