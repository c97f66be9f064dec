"""Runs side by side, as a page, Markdown, CSV and plots: `python -m hybrid.report`.

`run_record` reads a run folder, `groups` finds what differs and gathers seeds, `plots` draws, `sections` says what is
said, drawn and tabulated, `page` writes it.
"""
