"""Build a reward model to train, load one to score. Importing this package imports no torch."""

# The computed tokens of one forward in scoring. More gains nothing on a CPU (benchmarks/speed.py).
TOKEN_BUDGET = 4096
