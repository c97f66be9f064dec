"""Whether a run that was interrupted ended as one that was not: what differs, in words."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from training_toy import tensors_of

from hybrid.checkpoints import finding
from hybrid.storage.folders import verify_folder
from hybrid.training.metrics import read_metrics

KINDS = ("scalars", "images", "text", "custom_scalars", "hparams")
"""Plugins of TensorBoard, of whose events all are read."""


def of_the_clock(tag: str) -> bool:
    return tag == "time" or tag.endswith("tokens_per_second")


def differences(expected: Path, got: Path) -> list[str]:
    """What the run at `got` has otherwise than the one at `expected`; both are places with `runs/tiny` and `cache`."""
    run, other = expected / "runs" / "tiny", got / "runs" / "tiny"
    try:
        return [*leftovers(expected, got), *_state(run, other), *_records(run, other), *_charts(run, other)]
    except (ValueError, OSError, KeyError) as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]


def leftovers(expected: Path, got: Path) -> list[str]:
    """Files that the interrupted run has beyond those of the other one, or lacks."""
    ours, theirs = _names(expected), _names(got)
    return [
        *(f"left over: {name}" for name in sorted(theirs - ours - {"runs/tiny/metrics.jsonl.superseded"})),
        *(f"missing: {name}" for name in sorted(ours - theirs)),
    ]


def _names(place: Path) -> set[str]:
    """Every path, but for which checkpoints there are and how many files of events."""
    names = set()
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if name.startswith("runs/tiny/checkpoints/step-") and not name.partition("step-")[2][8:].startswith("."):
            name = "runs/tiny/checkpoints/step-N" + name.partition("step-")[2][8:]
        if name.startswith("runs/tiny/events.out.tfevents."):
            name = "runs/tiny/events.out.tfevents.N"
        names.add(name)
    return names


def _state(run: Path, other: Path) -> list[str]:
    """Weights, optimizer, averages and samples, bit by bit; the checkpoints are whole."""
    found = []
    for folder in finding.list_checkpoints(other / "checkpoints"):
        verify_folder(folder)
    last = [finding.find_checkpoint(folder) for folder in (run, other)]
    if last[0].name != last[1].name:
        return [f"the last checkpoint is {last[1].name}, not {last[0].name}"]
    a, b = map(tensors_of, last)
    found += [f"tensor {name}" for name in sorted(a.keys() ^ b.keys())]
    found += [f"tensor {name}" for name in a if name in b and a[name].numpy().tobytes() != b[name].numpy().tobytes()]
    if finding.read_state(last[0]) != finding.read_state(last[1]):
        found.append("state.json")
    if len(finding.list_checkpoints(other / "checkpoints")) > 3:
        found.append("more checkpoints than the last two and the best")
    best = [finding.read_best(folder / "checkpoints") for folder in (run, other)]
    if [b and (b[0].name, b[1]) for b in best[:1]] != [b and (b[0].name, b[1]) for b in best[1:]]:
        found.append(f"best: {_best(best[1])}, not {_best(best[0])}")
    for name in ("config.yaml", *(path.relative_to(run) for path in run.glob("samples/*") if path.is_file())):
        if not (other / name).is_file() or (run / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name}")
    return found


def _best(best: tuple[Path, float] | None) -> str:
    return "none" if best is None else f"{best[0].name} ({best[1]})"


def _records(run: Path, other: Path) -> list[str]:
    """metrics.jsonl, but for times; it has whole lines only."""
    a, b = ([_without_clock(record) for record in read_metrics(folder)] for folder in (run, other))
    found = [f"metrics.jsonl: {n} records of {record}" for record, n in Counter(b).items() if n > Counter(a)[record]]
    found += [f"metrics.jsonl: lacks {record}" for record in a if record not in b]
    if not found and a != b:
        found.append("metrics.jsonl: another order")
    if not (other / "metrics.jsonl").read_bytes().endswith(b"\n"):
        found.append("metrics.jsonl: the last line is torn")
    return [text[:200] for text in found]


def _without_clock(record: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in record.items() if not of_the_clock(key)}, sort_keys=True)


def _charts(run: Path, other: Path) -> list[str]:
    """What TensorBoard shows: numbers by value, texts and images by step.

    What is shown at the end, before the record by which a run has ended, may be there twice: a kill in between loses
    none of it.
    """
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of records that it drops, as it should
    found = []
    shown = [EventAccumulator(str(folder), tensor_size_guidance=dict.fromkeys(KINDS, 0)) for folder in (run, other)]
    for events in shown:
        events.Reload()
    a, b = (set(events.Tags()["tensors"]) for events in shown)
    last = read_metrics(run)[-1]["step"]
    found += [f"TensorBoard: tag {tag}" for tag in sorted(a ^ b)]
    for tag in sorted(tag for tag in a & b if not of_the_clock(tag)):
        x, y = ([(e.step, _number(e.tensor_proto)) for e in events.Tensors(tag)] for events in shown)
        y = [event for i, event in enumerate(y) if event[0] != last or event not in y[:i]]
        twice = [step for step, n in Counter(step for step, _ in y).items() if n > 1]
        if twice:
            found.append(f"TensorBoard: {tag} twice at step {twice[0]}")
        elif x != y:
            lost = sorted(set(x) - set(y))
            found.append(f"TensorBoard: {tag} " + (f"lacks step {lost[0][0]}" if lost else "has other values"))
    return found


def _number(tensor: Any) -> str:
    return repr(list(tensor.float_val) or tensor.tensor_content)
