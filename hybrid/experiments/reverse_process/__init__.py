"""The reverse process of a masked model on a grid of time steps: its exact law, samplers of one step, texts."""
