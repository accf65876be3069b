"""Several processes as one: who takes part, and sums over them. A run of one process is a mesh of size 1."""
