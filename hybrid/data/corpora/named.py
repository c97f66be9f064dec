"""Corpora: where text comes from. Each source says cheaply who it is, and loads its documents on demand.

    locate(corpus, ...) -> Source        embedded, local files or the Hub
    source.identity()   -> str           changes when the content may have changed; key of the cache
    source.load(folder) -> Documents     random access; `folder` is scratch space on disk

Embedded corpora (nothing to download) live in `CORPORA`. To add one: a frozen dataclass with `identity` and `load`,
whose fields are its options. One that knows the law of its documents also has `entropy` and `log_prob`.
"""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hybrid.data.corpora.files import (
    Document,
    Documents,
    InMemory,
    TableDocuments,
    TableFiles,
    TextFiles,
    digest,
    identity,
    quiet_datasets,
    reason,
    saved_table,
)
from hybrid.data.corpora.listing import FORMATS, KNOWN, find_files, format_of
from hybrid.data.corpora.markov import BlockMarkov, Markov
from hybrid.data.corpora.tasks import Sudoku, Sums
from hybrid.options import bare, build, nearest, pick, shown


class Source(Protocol):
    def identity(self) -> str: ...
    def load(self, folder: Path) -> Documents: ...


@runtime_checkable
class KnownEntropy(Protocol):
    """A source whose documents, without prompts, are independent draws from one known law."""

    def entropy(self) -> float: ...  # nats of a document, in expectation
    def log_prob(self, texts: Sequence[str]) -> np.ndarray: ...  # nats of each


@dataclass(frozen=True)
class StdLib:
    """Source code of Python's standard library, about 11 MB: one module is one document."""

    def identity(self) -> str:
        return identity(_stdlib_files(), platform.python_version())

    def load(self, folder: Path) -> Documents:
        texts = [text for text in map(_source_text, _stdlib_files()) if text is not None]
        return InMemory([Document(text) for text in texts])


@dataclass(frozen=True)
class PyDocs:
    """English documentation of Python, about 2 MB: a help topic, or the docstrings of one module, is a document."""

    def identity(self) -> str:
        return identity(_stdlib_files(), platform.python_version())

    def load(self, folder: Path) -> Documents:
        from pydoc_data.topics import topics

        seen: set[str] = set()
        documents = [Document(inspect.cleandoc(topics[name]) + "\n") for name in sorted(topics)]
        for path in _stdlib_files():
            # A docstring that a module has from another (a C accelerator's twin, say) is read once.
            prose = [doc for doc in _docstrings(path) if doc not in seen]
            seen.update(prose)
            if prose:
                documents.append(Document("\n\n".join(dict.fromkeys(prose)) + "\n"))
        return InMemory(documents)


CORPORA: dict[str, type[Source]] = {
    "block_markov": BlockMarkov,
    "markov": Markov,
    "pydocs": PyDocs,
    "stdlib": StdLib,
    "sudoku": Sudoku,
    "sums": Sums,
}

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def _stdlib_files() -> list[Path]:
    """Source files of the standard library without tests and third-party packages, sorted by name."""
    root = sysconfig.get_path("stdlib")
    found = []
    for folder, subfolders, names in os.walk(root):
        # config-* and _sysconfigdata* describe the machine that built this Python.
        subfolders[:] = [s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("config-")]
        found += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
    if not found:
        raise ValueError(
            f"data.corpus: this Python has no standard library source in {root!r} (pydocs and stdlib are made of it); "
            "set data.corpus to a file or folder"
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _source_text(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:  # honours the coding line
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None  # a template, or data that only looks like a module


def _docstrings(path: Path) -> list[str]:
    """Docstrings of a module, its classes and functions, in source order, read without importing it."""
    text = _source_text(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the source are not ours to report
            tree = ast.parse(text or "")
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [doc for doc in (ast.get_docstring(node) for node in nodes) if doc]


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face Hub at a pinned commit."""

    name: str
    revision: str
    subset: str | None
    split: str
    column: str
    cache_dir: str | None = None  # where the download is kept: another tokenizer should not fetch it again

    def identity(self) -> str:
        return digest(self.name, self.revision, self.subset or "", self.split, self.column)

    def load(self, folder: Path) -> Documents:
        datasets = quiet_datasets()
        where = f"{self.name!r} at revision {self.revision}"
        try:
            table = datasets.load_dataset(
                self.name, self.subset, revision=self.revision, split=self.split, cache_dir=self.cache_dir
            )
        except Exception as error:  # network, name, revision, subset, split: the library raises a dozen types
            raise ValueError(
                f"data.corpus: {where}, subset {self.subset!r}, split {self.split!r} could not be loaded "
                f"({reason(error)}); check the network, data.revision, data.subset and data.split"
            ) from None
        return TableDocuments(table, self.column, where)


def is_embedded(corpus: str | Mapping[str, Any]) -> bool:
    """Whether `corpus` is an entry of `CORPORA`: its name, or a mapping with its name and options."""
    return not isinstance(corpus, str) or corpus in CORPORA


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
    if not isinstance(corpus, str):
        return build(CORPORA, corpus, "data.corpus")
    if corpus in CORPORA:
        return CORPORA[corpus]()
    if saved is not None:
        return saved
    if files:
        kind = format_of(files, format, corpus)
        return TextFiles(files) if kind == "text" else TableFiles(files, kind, column)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) and not has_magic(corpus):
        return Hub(corpus, revision, subset, split, column, cache_dir)
    raise _names_nothing(corpus, revision)


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
    if has_magic(corpus) or corpus.startswith((".", "/", "~")) or corpus.endswith(KNOWN):
        return ValueError(
            f"data.corpus: {shown(corpus)}: no such file or folder, nor does it match any; check the path"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", corpus):
        return ValueError(
            f"data.corpus: {shown(corpus)} is no file or folder here; if it is a data set of the Hub, data.revision "
            f"must be the 40-digit commit to use (branches move), not {shown(revision)}: set data.revision=COMMIT"
        )
    return ValueError(
        f"data.corpus: {shown(corpus)} is not one of {', '.join(sorted(CORPORA))}{nearest(corpus, CORPORA)}, nor a "
        "file, folder or glob; a data set of the Hub also needs data.revision=COMMIT (40 digits)"
    )
