"""Find out what `data.corpus` names: an entry of `CORPORA`, local files, or a data set of the Hub."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from glob import has_magic
from pathlib import Path
from typing import Any

from hybrid.data.corpora import CORPORA
from hybrid.data.corpora.files import TableFiles, TextFiles, saved_table
from hybrid.data.corpora.hub import Hub
from hybrid.data.corpora.listing import FORMATS, KNOWN, find_files, format_of
from hybrid.data.corpora.source import Source
from hybrid.options import OWN, bare, build, nearest, nearest_path, needs, pick, shown


def locate(
    corpus: str | Mapping[str, Any],
    format: str = "auto",
    column: str = "text",
    revision: str | None = None,
    subset: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
) -> Source:
    """Find out what `corpus` names: an entry of `CORPORA`, then local files, then a data set of the Hub.

    Args:
        corpus: a mapping `{name: sudoku, size: 4}` is an entry of `CORPORA` with its options.

    Raises:
        ValueError: it names nothing, a Hub data set without a commit, or a wrong option; says what is allowed.
    """
    pick("data.format", format, FORMATS)
    refuse_no_name(corpus)
    hub_only = {"data.revision": revision, "data.subset": subset}
    ignored = [key for key, value in hub_only.items() if value is not None]
    saved, files = None, ()
    if isinstance(corpus, str) and corpus not in CORPORA:
        saved = saved_table(corpus, split, column) if format == "auto" else None
        files = find_files(corpus, format) if saved is None else ()
    if ignored and (is_embedded(corpus) or saved or files):
        named = bare(corpus)
        warnings.warn(f"{', '.join(ignored)}: ignored, because data.corpus={named} is not on the Hub", stacklevel=2)
    if is_embedded(corpus):
        source = CORPORA[corpus]() if isinstance(corpus, str) else build(CORPORA, corpus, "data.corpus")
        needs("data.corpus", source, "identity", "load")
        return source
    assert isinstance(corpus, str)
    if saved is not None:
        return saved
    if files:
        kind = format_of(files, format, corpus)
        return TextFiles(files) if kind == "text" else TableFiles(files, kind, column)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) and not has_magic(corpus):
        return Hub(corpus, revision, subset, split, column, cache_dir)
    raise _names_nothing(corpus, revision)


def is_embedded(corpus: str | Mapping[str, Any]) -> bool:
    """Return whether `corpus` is an entry of `CORPORA`: its name, or a mapping with its name and options."""
    return not isinstance(corpus, str) or corpus in CORPORA


def refuse_no_name(corpus: Any) -> None:
    """Raise ValueError for what no corpus can be called: nothing, and what config.yaml can't hold."""
    if not isinstance(corpus, str):
        return
    if not corpus.strip():
        raise ValueError(
            f"data.corpus: {corpus!r} is empty (a variable of the shell that is not set?); name an embedded corpus "
            f"({', '.join(CORPORA)}), a file, folder or glob, or a data set of the Hub"
        )
    refuse_not_utf8("data.corpus", corpus)


def refuse_not_utf8(key: str, path: str) -> None:
    """Raise ValueError for a path that a file of text, a run's record, can't hold."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{key}: {shown(path)} is not UTF-8, so the record of the run can't hold it; rename the file, or (of a "
            "corpus) name it by a glob or its folder"
        ) from None


def _names_nothing(corpus: str, revision: str | None) -> ValueError:
    near = nearest_path(Path(corpus))
    if has_magic(corpus) or corpus.startswith((".", "/", "~")) or corpus.endswith(KNOWN):
        return ValueError(
            f"data.corpus: {shown(corpus)}: no such file or folder, nor does it match any{near}; check the path"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", corpus):
        given = "" if revision is None else f", not {shown(revision)}"
        return ValueError(
            f"data.corpus: {shown(corpus)} is no file or folder here{near}; a data set of the Hub "
            f"needs data.revision=COMMIT (40 digits){given}"
        )
    near = nearest(corpus, CORPORA) or near
    return ValueError(
        f"data.corpus: {shown(corpus)} is not one of {', '.join(sorted(CORPORA))}{near}, nor a "
        f"file, folder or glob; a data set of the Hub also needs data.revision=COMMIT (40 digits){OWN}"
    )
