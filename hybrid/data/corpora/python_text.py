"""Text that every Python has: the source code and the documentation of its standard library."""

from __future__ import annotations

import ast
import inspect
import os
import platform
import sysconfig
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path

from hybrid.data.corpora.files import identity
from hybrid.data.corpora.source import Document, Documents, InMemory

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


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


def _stdlib_files() -> list[Path]:
    """List the source files of the standard library without tests and third-party packages, sorted by name."""
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
    """Read the docstrings of a module, its classes and functions, in source order, without importing it."""
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
