"""SteerLM over whole data sets: annotate them, and bootstrap new ones."""
