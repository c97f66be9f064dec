"""List the local files that a path, glob or folder names, and their format. What it names is read, or refused by name.

Left out are, in a folder, hidden names, and with a word other suffixes and linked folders.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from hybrid.data.corpora.reading import GZIP, ZSTD, file_start, what_is
from hybrid.options import shown

log = logging.getLogger(__name__)

SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq"),
}
FORMATS = ("auto", *SUFFIXES)
PACKED = (".gz", ".zst")  # may follow one of those
KNOWN = sum(SUFFIXES.values(), ())


def find_files(corpus: str, format: str = "auto") -> tuple[Path, ...]:
    """List the files of a path, glob or folder (searched through, hidden names left out); () if there is no such thing.

    In a folder only files whose suffix belongs to `format` count (any known suffix for `auto`).

    Raises:
        ValueError: it names what can't be read: an unreadable folder in it, a broken link, a pipe or a device.
    """
    path = os.path.expanduser(corpus)
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        return _in_folder(path, corpus, format)
    if mode is not None or os.path.lexists(path):
        return (_regular(path),)
    return _of_glob(path, corpus)


def format_of(files: Sequence[Path], format: str, corpus: str) -> str:
    """Return the format of files, `auto` by their suffixes.

    Raises:
        ValueError: they have several, or a suffix that says nothing.
    """
    if format != "auto":
        return format
    by_suffix = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}
    for path in files:
        if suffix_of(path) not in by_suffix:
            start = file_start(path)
            what = what_is(start)
            if start.startswith((GZIP, ZSTD)):
                packed = PACKED[0] if start.startswith(GZIP) else PACKED[1]
                raise ValueError(
                    f"data.format: {str(path)!r} is packed, which is read, but its name does not tell what is in it; "
                    f"call it .jsonl{packed} or .txt{packed}, or set data.format to {', '.join(SUFFIXES)}"
                )
            raise ValueError(
                f"data.format: {str(path)!r} is {what}"
                if what is not None
                else f"data.format: the name of {str(path)!r} does not tell its format ({', '.join(KNOWN)}, each also "
                f"with {' or '.join(PACKED)}); set data.format to {', '.join(SUFFIXES)} (text is taken as it is: "
                "commas, quotes and braces are learned)"
            )
    found = sorted({by_suffix[suffix_of(path)] for path in files})
    if len(found) > 1:
        raise ValueError(
            f"data.format: {shown(corpus)} holds files of several formats ({', '.join(found)}); set data.format to one"
        )
    return found[0]


def suffix_of(path: Path | str) -> str:
    """Return the suffix that tells the format, in lower case: `.jsonl` of `A.JSONL.gz`."""
    name = os.path.basename(path).lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return os.path.splitext(name)[1]


def _in_folder(folder: str, corpus: str, format: str) -> tuple[Path, ...]:
    if os.path.realpath(folder) == os.path.abspath(os.sep):
        raise ValueError(f"data.corpus: {shown(corpus)} is the root of the whole file system; name the folder of texts")
    suffixes = KNOWN if format == "auto" else SUFFIXES[format]
    unread: list[OSError] = []
    linked: list[str] = []
    found: list[str] = []
    left_out: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=unread.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked += [link for name in folders if os.path.islink(link := os.path.join(parent, name))]
        for name in names:
            if not name.startswith("."):
                (found if suffix_of(name) in suffixes else left_out).append(os.path.join(parent, name))
    _refuse_unread(unread)
    if linked:
        warnings.warn(
            f"data.corpus: linked folders in {shown(corpus)} are not searched ({_first(linked)}); a glob follows links "
            "(FOLDER/**/*.txt)",
            stacklevel=2,
        )
    if not found:
        (suffix, _), *_ = Counter(map(suffix_of, left_out)).most_common(1) or [("", 0)]
        files = os.path.join(corpus if len(corpus) <= 200 else "FOLDER", "**", f"*{suffix}")
        raise ValueError(
            f"data.corpus: no {', '.join(suffixes)} files in folder {shown(corpus)}; others are read as what you say "
            f"that they are, e.g. data.corpus={files!r} data.format=text"
        )
    if left_out:
        log.info(
            "data.corpus: %s other files in %s are left out (%s); a glob and data.format read them",
            f"{len(left_out):,}", shown(corpus), _first(sorted(left_out)),
        )  # fmt: skip
    return tuple(sorted(map(_regular, found)))


def _of_glob(pattern: str, corpus: str) -> tuple[Path, ...]:
    if not has_magic(pattern):
        return ()
    _refuse_unread(_unread_on_the_way(pattern))
    matches = glob(pattern, recursive=True)
    folders = [path for path in matches if os.path.isdir(path)]
    files = [_regular(path) for path in matches if not os.path.isdir(path)]
    if folders and "**" not in pattern:
        way_out = f"data.corpus: {shown(corpus)} matches folders ({_first(sorted(folders))})"
        if not files:
            raise ValueError(f"{way_out} and no file; name one folder, or the files in them (FOLDERS/*.txt)")
        warnings.warn(f"{way_out}, which are not searched: only its files are read", stacklevel=2)
    return tuple(sorted(files))


def _unread_on_the_way(pattern: str) -> Iterator[OSError]:
    """Return the errors of folders that `glob` would pass over in silence."""
    parts = Path(pattern).parts
    for i, part in enumerate(parts):
        if has_magic(part):
            before = os.path.join("", *parts[:i])
            searched = os.path.join(before, "**", "") if part == "**" else os.path.join(before, "")
            for folder in glob(searched, recursive=True) if before or part == "**" else ["."]:
                try:
                    os.scandir(folder).close()
                except OSError as error:
                    yield error
        elif has_magic(before := os.path.join("", *parts[:i])):
            for folder in glob(before, recursive=True):
                try:
                    os.lstat(os.path.join(folder, part))
                except PermissionError as error:
                    yield error
                except OSError:
                    pass  # it does not match


def _refuse_unread(errors: Iterable[OSError]) -> None:
    for error in errors:
        raise ValueError(f"data.corpus: {error.filename}: {error.strerror}; make it readable, or name what to read")


def _regular(path: str) -> Path:
    """Return the path of a file that can be read from its start, as often as one likes."""
    mode = _mode(path)
    if mode is None:
        raise ValueError(f"data.corpus: {path!r} is a link to nothing; remove it, or restore what it links to")
    if not stat.S_ISREG(mode):
        raise ValueError(f"data.corpus: {path!r} is a pipe, a socket or a device; write its text to a file first")
    return Path(path)


def _mode(path: str) -> int | None:
    """Return what a path is, links followed; None if there is nothing."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise ValueError(f"data.corpus: {shown(path)}: {error.strerror}; check the path") from None
    except ValueError:  # a zero byte
        raise ValueError(f"data.corpus: {shown(path)} is no path ('\\0' in it); check it") from None


def _first(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
