"""A model of this repository under lm-evaluation-harness: its requests become rows for likelihoods, and prompts.

Only `adapter` imports the harness, which is optional (extra `lm-eval`).
"""
