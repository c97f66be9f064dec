"""Experiments: each a command that answers one question and writes its table with where it came from."""
