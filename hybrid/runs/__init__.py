"""A configuration becomes a run, with its folder."""
