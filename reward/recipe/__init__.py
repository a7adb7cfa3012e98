"""Strict recipes: YAML over TRL's and transformers' keys."""
