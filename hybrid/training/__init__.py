"""Optimizer steps, validation, and what a run writes down."""
