"""What the harness raises for mistakes in a task or on the command line, in words that say what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hybrid.options import bare


def in_a_line(error: Exception) -> str:
    """Say what is wrong with a task. The harness often raises a key, an index, or nothing."""
    if isinstance(error, ValueError) and str(error):
        return bare(str(error), 300)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{bare(what, 300)}; check its fields, splits and metrics (HYBRID_TRACEBACK=1 shows where)"


@contextmanager
def mistakes_of_tasks() -> Iterator[None]:
    """Turn what the harness raises while it runs tasks into a ValueError; what we raise stays as it is."""
    try:
        yield
    except Exception as error:
        if "Sample larger than population" in str(error):
            raise ValueError(
                "num_fewshot: more examples than a task has beside its question; take fewer (--num-fewshot K)"
            ) from error
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        owners = [name.partition(".")[0] for name in modules]
        if next((owner for owner in reversed(owners) if owner in ("hybrid", "lm_eval")), None) != "lm_eval":
            raise
        raise ValueError(f"tasks: {in_a_line(error)}") from error
