"""A report as one HTML page that needs no other file and no network, and as Markdown with its plots beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from string import Template

from hybrid.report import plots
from hybrid.report.sections import Section
from hybrid.results.table import Table, cell

MARK = '<meta name="generator" content="hybrid.report">'


def to_html(title: str, facts: Sequence[str], warnings: Sequence[str], sections: Sequence[Section]) -> str:
    template = Template(resources.files("hybrid.report").joinpath("page.html").read_text(encoding="utf-8"))
    contents = "".join(f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections))
    body = "\n".join(_section(i, section) for i, section in enumerate(sections))
    return template.substitute(
        mark=MARK,
        title=html.escape(title),
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
        warnings="".join(f'<p class="warning">{html.escape(warning)}</p>' for warning in warnings),
        contents=contents,
        body=body,
    )


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>', f"<p>{html.escape(section.text)}</p>"]
    if section.figures:
        drawn = [
            f'<figure role="img" aria-label="{html.escape(caption)}">{plots.save_svg(figure, name)}</figure>'
            for name, (caption, figure) in section.figures.items()
        ]
        parts.append(f'<div class="figures">{"".join(drawn)}</div>')
    if section.table is not None:
        parts.append(_table(section.table))
    if section.samples:
        cards = [f"<div><h3>{html.escape(n)}</h3><pre>{html.escape(t)}</pre></div>" for n, t in section.samples.items()]
        parts.append(f'<div class="samples">{"".join(cards)}</div>')
    if section.settings:
        rows = "".join(
            f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
            for key, value in section.settings.items()
        )
        parts.append(f"<details><summary>What they have in common</summary><table>{rows}</table></details>")
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th><button type="button">{html.escape(str(c))}</button></th>' for c in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell(v))}</td>' for v in row)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def to_markdown(section: Section, stem: str) -> str:
    """One section; its plots are files `stem`-NAME.png beside it."""
    parts = [f"## {section.title}", section.text]
    parts += [f"![{caption}]({stem}-{name}.png)" for name, (caption, _) in section.figures.items()]
    if section.table is not None:
        parts.append(section.table.markdown())
    return "\n\n".join(parts)
