"""Links of a Markdown page, and the anchors that its headings make, by GitHub's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+[\"'][^\"']*[\"'])?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", re.MULTILINE)
_HTML = re.compile(r"<(?:a|img|source|video)\b[^>]*?\b(?:href|src|srcset)=[\"']([^\"']*)[\"']", re.IGNORECASE)
_AUTOMATIC = re.compile(r"<(https?://[^>]*)>")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
_IDENTIFIER = re.compile(r"<\w+\b[^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']")


def links_of(text: str) -> list[str]:
    """Targets of links and images; none of those in code."""
    prose = _CODE.sub("", _FENCE.sub("", text))
    return [target for pattern in (_LINK, _REFERENCE, _HTML, _AUTOMATIC) for target in pattern.findall(prose)]


def anchors_of(text: str) -> set[str]:
    """What `#...` may say of a page: a heading's letters, digits, `-` and `_` in lower case, spaces as `-`.

    A second heading of the same text has `-1` behind it, a third `-2`.
    """
    prose = _FENCE.sub("", text)
    found: set[str] = set(_IDENTIFIER.findall(prose))
    for heading in _HEADING.findall(prose):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link, its text
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        names = (slug if not number else f"{slug}-{number}" for number in range(len(found) + 1))
        found.add(next(name for name in names if name not in found))
    return found


def faults(page: Path, repo: Path) -> Iterator[str]:
    """Say of each link of a page why it does not hold."""
    for target in links_of(page.read_text(encoding="utf-8")):
        why = _fault(target, page, repo.resolve())
        if why:
            yield f"{target}: {why}"


def target_of(link: str, page: Path) -> Path | None:
    """The file of the repository that a link leads to; None for a link to elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()


def _fault(link: str, page: Path, repo: Path) -> str | None:
    try:
        parts = urlsplit(link)
    except ValueError:
        return "malformed"
    if parts.scheme in ("http", "https"):
        return _fault_of_address(link, repo)
    if parts.scheme or parts.netloc:
        return None if parts.scheme == "mailto" else "neither a file of the repository nor a page of the web"
    if not link or parts.path.startswith("/"):
        return "not relative to the page"
    target = target_of(link, page)
    assert target is not None
    if not target.is_relative_to(repo):
        return "outside of the repository"
    if not target.exists():
        return "not there"
    if parts.fragment and (target.suffix != ".md" or parts.fragment not in anchors_of(target.read_text("utf-8"))):
        return "no such heading"
    return None


def _fault_of_address(link: str, repo: Path) -> str | None:
    parts = urlsplit(link)
    host = parts.hostname or ""
    if not re.fullmatch(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}", host) or re.search(r"[\s\"'`|\\^{}]", link):
        return "malformed"
    inside = re.search(r"/(?:blob|tree|raw)/[^/]+/(.+)", parts.path)
    if inside and (repo / unquote(inside[1])).exists() and f"/{repo.name}/" in f"{parts.path}/":
        return "a file of this repository: link to it by its path"
    return None
