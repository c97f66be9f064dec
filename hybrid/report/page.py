"""A report as one HTML page that needs no other file and no network, and as Markdown with its plots beside it."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from hybrid.report.plots import save_svg
from hybrid.report.sections import Section
from hybrid.results.table import cell

MARK = '<meta name="generator" content="hybrid.report">'
"""In page.html, which becomes every page."""


def to_html(title: str, facts: Sequence[str], warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """Fill page.html. Every text is escaped, whatever runs and models call themselves or write."""
    loader = PackageLoader("hybrid.report", "")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return pages.get_template("page.html").render(
        title=title, facts=facts, warnings=warnings, sections=sections, svg=save_svg, cell=cell
    )


def to_markdown(section: Section, stem: str) -> str:
    """One section; its plots are files `stem`-NAME.png beside it."""
    parts = [f"## {section.title}", section.text]
    parts += [f"![{caption}]({stem}-{name}.png)" for name, (caption, _) in section.plots.items()]
    if section.table is not None:
        parts.append(section.table.markdown())
    return "\n\n".join(parts)
