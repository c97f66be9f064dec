"""Folders that hold a model: written, found and read back."""
