"""One training run, from a recipe to a verified checkpoint."""
