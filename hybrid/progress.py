"""How far long work has come, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Chunk = TypeVar("Chunk", bound=Sized)

DELAY = 1.0  # seconds before a bar appears
INTERVAL = 10.0  # seconds between two lines


def progress(chunks: Iterable[Chunk], total: int, what: str, noun: str = "documents") -> Iterator[Chunk]:
    """Pass the chunks on, which hold `total` things (called `noun`) in all; short work passes in silence."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=f" {noun}", leave=False, delay=DELAY) as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk))
        return
    done, said = 0, time.monotonic()
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if time.monotonic() - said > INTERVAL:
            said = time.monotonic()
            print(f"{what}: {done} of {total} {noun}", file=sys.stderr, flush=True)
