"""A configuration becomes a run: its folder, its parts, its resumption."""
