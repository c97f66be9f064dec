"""Runs side by side, as a page, Markdown, CSV and plots: `python -m hybrid.report`.

`record` reads a run folder, `groups` finds what differs and gathers seeds, `figures` draws, `tables` tabulates, `page`
puts them together.
"""
