"""What TensorBoard reads of a run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path


def events_of(folder: Path) -> dict[str, list]:
    """tag -> [(step, value)] of all event files, and the order of their steps as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = defaultdict(list)
    for path in sorted(folder.glob("events.*"), key=lambda path: int(path.name.rsplit(".", 1)[1])):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                events["session_log"].append((event.step, event.session_log))
            for value in event.summary.value:
                events[value.tag].append((event.step, value))
    return events
