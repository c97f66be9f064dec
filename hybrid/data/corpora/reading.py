"""Read the content of a local file: unpacked if it is gzip or zstd, as text if it is UTF-8, else what it seems to be.

The one rule for text, in corpora and prompts alike: UTF-8, a byte order mark at the start is dropped, and everything
else stays as it is: line ends (CRLF, CR), a final line end, tabs and blanks.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hybrid.options import bare

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
UTF_16 = "UTF-16 text; convert it (iconv -f UTF-16 -t UTF-8)"
_KINDS = (  # how a file begins -> what it is, and what to do
    (b"\xff\xfe\x00\x00", "UTF-32 text; convert it (iconv -f UTF-32 -t UTF-8)"),
    (b"\x00\x00\xfe\xff", "UTF-32 text; convert it (iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (GZIP, "packed with gzip; unpack it"),
    (ZSTD, "packed with zstd; unpack it"),
    (b"BZh", "packed with bzip2; unpack it (bunzip2)"),
    (b"\xfd7zXZ", "packed with xz; unpack it (unxz)"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"PAR1", "a parquet file; set data.format=parquet"),
    (b"ARROW1", "an arrow file; write it as parquet, or name the folder that datasets.save_to_disk wrote"),
    (b"%PDF", "a PDF; extract its text"),
)
SNIFFED = 4096  # bytes that tell text from other data


@contextmanager
def opened(path: Path | str, key: str = "data.corpus") -> Iterator[IO[bytes]]:
    """Open a file to read bytes from, unpacked if its first bytes are those of gzip or zstd.

    Raises:
        ValueError: it can't be opened, read or unpacked; names the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(ZSTD))
            file.seek(0)
            if start.startswith(GZIP):
                gzipped: Any = gzip.GzipFile(fileobj=file)
                with gzipped:
                    yield gzipped
            elif start == ZSTD:
                import pyarrow

                raw: Any = pyarrow.CompressedInputStream(file, "zstd")
                with io.BufferedReader(raw) as unpacked:
                    yield unpacked
            else:
                yield file
    except OSError as error:
        if error.strerror:
            raise ValueError(f"{key}: {path}: {error.strerror}; check the file") from None
        raise _damaged(path, error, key) from None
    except (EOFError, zlib.error) as error:
        raise _damaged(path, error, key) from None


def read_text(path: Path, key: str = "data.corpus") -> str:
    """Read a UTF-8 file by the rule above.

    Raises:
        ValueError: it can't be read, or is no UTF-8; names the file, where, and what it seems to be.
    """
    with opened(path, key) as file:
        return decoded(file.read(), path, key)


def decoded(content: bytes, path: Path | str, key: str = "data.corpus") -> str:
    """Decode `content`, all that the file at `path` holds, by the rule above. Raises ValueError as `read_text`."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.start, content, key) from None
    if _is_utf16(content[:SNIFFED]):  # of Latin letters, without a byte order mark, it is UTF-8 as well
        raise ValueError(f"{key}: {path} is {UTF_16}")
    return text.removeprefix("\ufeff")


def not_utf8(path: Path | str, offset: int, content: bytes, key: str = "data.corpus") -> ValueError:
    """Return the error for a file whose byte `offset` is not UTF-8; `content` is what it begins with, or more."""
    what = what_is(content[:SNIFFED])
    if what is not None:
        return ValueError(f"{key}: {path} is {what}")
    return ValueError(
        f"{key}: {path} is not UTF-8 (byte {offset}); convert it from the encoding that it is in "
        "(iconv -f ENCODING -t UTF-8), which its maker knows: a wrong guess spoils it without an error"
    )


def what_is(start: bytes) -> str | None:
    """Say what a file that begins like this is, and the way out, to end a sentence; None for what may be text."""
    for magic, what in _KINDS:
        if start.startswith(magic):
            return what
    if _is_utf16(start):
        return UTF_16
    return "binary data, not text" if b"\x00" in start else None


def file_start(path: Path | str) -> bytes:
    """Return the first bytes of a file; none if it can't be read."""
    try:
        with open(path, "rb") as file:
            return file.read(SNIFFED)
    except OSError:
        return b""


def _is_utf16(start: bytes) -> bool:
    """Return whether about every other byte is zero."""
    few, many = sorted([start[::2].count(0), start[1::2].count(0)])
    return many >= 8 and many > len(start) / 4 and few < many / 4


def _damaged(path: Path | str, error: Exception, key: str) -> ValueError:
    reason = bare(error, 200) or type(error).__name__
    return ValueError(f"{key}: {path} is packed and damaged ({reason}); pack or fetch it again")
