"""Train a reward model and score with it. Nothing in here imports `auditing`."""
