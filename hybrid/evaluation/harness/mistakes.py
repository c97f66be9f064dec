"""What the harness raises for mistakes in a task or on the command line, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hybrid.options import bare


def in_a_line(error: Exception) -> str:
    """Say what a task could not be loaded for. The harness often raises a key, an index, or nothing."""
    if isinstance(error, ValueError) and str(error):
        return bare(str(error), 300)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{bare(what, 300)}; compare its settings with the fields and splits of its data"


@contextmanager
def too_few_examples() -> Iterator[None]:
    """Name the option where a task has fewer examples than are to stand before a question."""
    try:
        yield
    except ValueError as error:
        if "Sample larger than population" not in str(error):
            raise
        raise ValueError(
            "num_fewshot: more examples than a task has beside its question; take fewer (--num-fewshot K)"
        ) from None
