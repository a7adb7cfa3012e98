"""Build a reward model to train, load one to score."""
