"""Read what a run folder says of its run: settings, curves, likelihoods, generated texts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hybrid.checkpoints.identity import identity_at, is_same_checkpoint
from hybrid.config import Config, load_config, resolve_block_sizes
from hybrid.evaluation.results import DecoderResult
from hybrid.likelihoods.rows import SplitLikelihood
from hybrid.options import shown
from hybrid.report.evaluation import COMPARED, Evaluation, Facts, machine_name
from hybrid.storage.fields import Fields, counted, is_number
from hybrid.storage.json_files import read_json
from hybrid.training.metrics import METRICS_FILE, last_validation, read_metrics

# What must agree for likelihoods to be comparable, by its attribute of a run.
_SAME_DATA = {
    "corpus_sha256": "data",
    "target_tokens": "validation text",
    "tokenizer_fingerprint": "tokenizer",
}
_PARTS = ("config.yaml", "environment.json", METRICS_FILE)
"""Of the folder of a run; with two of them it is one, though it may be damaged."""


@dataclass(frozen=True)
class RunRecord:
    """One run, read from its folder; `notes` are what must be said of it."""

    name: str
    folder: Path
    config: Config
    environment: dict[str, Any]
    trained_on: Facts
    metrics: list[dict[str, Any]]
    evaluation: Evaluation | None  # eval.json
    weights: dict[str, Any] | None  # step and hash of the latest checkpoint
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, name: str) -> RunRecord:
        """Read a folder; a ValueError says that it is no run, a damaged one, or one that was not validated yet."""
        config = load_config(folder / "config.yaml", checked=False)
        content = Fields(read_json(folder / "environment.json"), str(folder / "environment.json"))
        data, environment = Facts.read(content.inner("data")), _environment(content)
        metrics = read_metrics(folder)
        _check_sizes(folder, config, metrics)
        evaluation = Evaluation.read(folder / "eval.json") if (folder / "eval.json").is_file() else None
        run = cls(name, folder, config, environment, data, metrics, evaluation, identity_at(folder))
        run = run._without_stale_evaluation()
        try:
            found = run.likelihoods if run.block_sizes else []
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: its last validation or its block sizes cannot be read: {error}") from None
        if not found:
            raise ValueError(
                f"{folder}: neither eval.json nor a validation in metrics.jsonl; finish the run (trainer.resume=auto), "
                f"or evaluate it: python -m hybrid.evaluate --checkpoint {folder}"
                f"{''.join(f' ({note})' for note in run.notes)}"
            )
        return run

    def _without_stale_evaluation(self) -> RunRecord:
        """Leave out numbers of one checkpoint that would stand beside the step of another."""
        e = self.evaluation
        if e is None:
            return self
        why = None
        if e.is_of_own_text and e.data.corpus_sha256 != self.trained_on.corpus_sha256:
            why = "of another text than the run was trained on"
        latest = self.weights or ({"step": self.metrics[-1]["step"]} if self.metrics else {})
        is_other = is_same_checkpoint(e.checkpoint, self.weights) is False
        if e.checkpoint and (is_other or (self.weights is None and e.checkpoint["step"] != latest.get("step"))):
            of = "another checkpoint of" if e.checkpoint["step"] == latest.get("step") else "of"
            why = f"{of} step {e.checkpoint['step']}, and the run is at step {latest.get('step')}"
        if why is None:
            return self
        again = f"python -m hybrid.evaluate --checkpoint {self.folder}"
        note = f"{self.name}: its eval.json is {why}: left out; evaluate it again: {again}"
        return dataclasses.replace(self, evaluation=None, notes=[*self.notes, note])

    @cached_property
    def block_sizes(self) -> list[int]:
        """Those it was trained on."""
        return resolve_block_sizes(self.config.objective.block_size, self.config.data.seq_len)

    @cached_property
    def likelihoods(self) -> list[SplitLikelihood]:
        """Of eval.json; without it those of the last validation during training."""
        if self.evaluation is not None:
            return self.evaluation.likelihoods
        last = Fields(last_validation(self.metrics) or {}, f"{self.folder / METRICS_FILE}: last validation")
        nelbo, bits = last.number("val/nelbo", None), last.number("val/bits_per_byte", None)
        factor = None if bits is None else bits / nelbo if nelbo else 0.0
        found = []
        for tag in last.content:
            size = tag.rpartition("/b")[2]
            if tag.startswith("val/likelihood/b") and size.isdecimal():
                likelihood, nats = last.text(tag), last.number(f"val/nelbo/b{size}")
                by_count = counted(last.content, f"val_by_count/b{size}/n")
                if likelihood not in COMPARED:
                    raise ValueError(f"{last.where}.{tag}: {shown(likelihood)} is none of {', '.join(COMPARED)}")
                stderr = last.number(f"val/stderr/b{size}", math.nan, least=0)
                bits = None if factor is None else nats * factor
                found.append(SplitLikelihood(int(size), likelihood, nats, stderr, bits, by_count=by_count))
        return found

    def own(self) -> SplitLikelihood | None:
        """Find the likelihood at the block size that it was trained for, if there is one."""
        if len(self.block_sizes) > 1:
            return None
        return next((m for m in self.likelihoods if m.block_size == self.block_sizes[0]), None)

    @property
    def how_evaluated(self) -> str:
        if self.evaluation is None:
            e = self.config.eval
            return f"during training, {e.rows or 'all'} rows, {e.draws} draws"
        return self.evaluation.how

    @property
    def is_evaluated_whole(self) -> bool:
        """Whether on all rows of the validation split."""
        return not (self.config.eval.rows if self.evaluation is None else self.evaluation.rows)

    @property
    def generated(self) -> list[DecoderResult]:
        """Of the decoders that wrote texts, and of the real text."""
        return [] if self.evaluation is None else self.evaluation.generated

    @property
    def evaluation_model(self) -> dict[str, Any] | None:
        """Which model read the generated texts."""
        return None if self.evaluation is None else self.evaluation.evaluation_model

    @property
    def is_autoregressive(self) -> bool:
        """An ordinary GPT: one causal pass, each token read off the row before it."""
        m = self.config.model
        return self.block_sizes == [1] and (m.context, m.prediction) == ("causal", "next_token")

    @property
    def data(self) -> Facts:
        """The text that it was evaluated on."""
        return self.trained_on if self.evaluation is None else self.evaluation.data

    @property
    def split(self) -> str:
        """The part of that text that it was evaluated on."""
        return "validation" if self.evaluation is None else self.evaluation.split

    @property
    def truth(self) -> tuple[float, float] | None:
        """If the source of the text is known, nats per token: its entropy, and what it gives the validation split."""
        entropy, own = self.data.entropy_per_token, self.data.source_nats_per_token
        return None if entropy is None or own is None else (entropy, own)

    @property
    def step(self) -> int:
        """At which its likelihoods were measured."""
        checkpoint = None if self.evaluation is None else self.evaluation.checkpoint
        if checkpoint is not None and checkpoint["step"] is not None:
            return checkpoint["step"]
        record = last_validation(self.metrics) if self.evaluation is None else None
        return (record or (self.metrics[-1] if self.metrics else {"step": 0}))["step"]

    @property
    def seconds(self) -> float:
        """Of training, until then."""
        return max((r["time"] for r in self.metrics if r["step"] <= self.step), default=0.0)

    def tokens(self, step: int) -> int:
        return step * self.config.trainer.batch_tokens

    def curve(self, tag: str) -> list[tuple[int, float, float]]:
        """(step, seconds, value) of a metric where it was logged and is a number."""
        return [(r["step"], r["time"], r[tag]) for r in self.metrics if is_number(r.get(tag))]

    @cached_property
    def sample(self) -> str:
        """The last texts that it wrote during training; of later steps than there are now those of before it went back
        to an earlier one."""
        end = self.metrics[-1]["step"] if self.metrics else 0
        found = (p for p in (self.folder / "samples").glob("step-*.txt") if p.is_file() and p.stem[5:].isdecimal())
        files = sorted((int(path.stem[5:]), path) for path in found)
        texts = [path for step, path in files if step <= end]
        return texts[-1].read_text(encoding="utf-8", errors="replace") if texts else ""


def _check_sizes(folder: Path, config: Config, metrics: Sequence[dict[str, Any]]) -> None:
    """Raise a ValueError for numbers that cannot be drawn."""
    for record in metrics:
        if not is_number(record["step"]) or not is_number(record["time"]):
            said = f"step {shown(record['step'])}, time {shown(record['time'])}"
            raise ValueError(f"{folder / METRICS_FILE}: a record has {said}; remove it")
    for name, value in (("batch_tokens", config.trainer.batch_tokens), ("steps", config.trainer.steps)):
        if not is_number(value):
            raise ValueError(f"{folder / 'config.yaml'}: trainer.{name}: {shown(value)} is too large")


def _environment(content: Fields) -> dict[str, Any]:
    """Read what a report tells of environment.json."""
    return {
        "commit": content.text("commit", None), "dirty": content.flag("dirty", False),
        "processor": content.text("processor"), "device": content.text("device"), "machine": machine_name(content),
        "threads": content.integer("threads"), "libraries": {"torch": content.inner("libraries").text("torch")},
        "parameters": content.integer("parameters"),
    }  # fmt: skip


def find_runs(paths: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """Find the runs at, or below, some paths, and why others there are left out. Names tell their folders apart.

    Raises:
        ValueError: a path at which there is none that can be read.
    """
    folders: dict[Path, bool] = {}  # whether it was named itself
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name runs, or a folder of runs")
        found = list(_runs_below(path, set()))
        if not found:
            raise ValueError(f"{path}: no run in it (a run has config.yaml and environment.json)")
        folders |= {folder.resolve(): folder == path for folder in found}
    parts = [folder.parts for folder in folders]
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))))
    shared = min(shared, min(map(len, parts)) - 1)  # of one alone, and of one inside another, the last part is left
    runs: list[RunRecord] = []
    left_out = []
    for folder, is_named in folders.items():
        try:
            runs.append(RunRecord.read(folder, "/".join(folder.parts[shared:])))
        except (ValueError, OSError) as error:
            if is_named or len(folders) == 1:
                raise
            left_out.append(f"Left out: {error}")
    if not runs:
        raise ValueError(f"{paths[0]}: none of its {len(folders)} runs can be read; {left_out[0]}")
    runs, copies = _without_copies(runs)
    return runs, left_out + copies


def _without_copies(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Leave out runs with the weights of another: they are one, and no seeds of a model."""
    kept: list[RunRecord] = []
    said = []
    for run in runs:
        twin = next((other for other in kept if is_same_checkpoint(run.weights, other.weights)), None)
        if twin is None:
            kept.append(run)
        else:
            said.append(f"Left out: {run.folder}: has the weights of {twin.name}: a copy, or the same run once more")
    return kept, said


def _runs_below(path: Path, seen: set[Path]) -> Iterator[Path]:
    """Find the folders of runs; a run does not hold other runs."""
    if path.resolve() in seen:  # a link leads back
        return
    seen.add(path.resolve())
    if sum((path / part).is_file() for part in _PARTS) > 1:
        yield path
        return
    for child in sorted(p for p in path.iterdir() if p.is_dir()):
        yield from _runs_below(child, seen)


def refuse_different_data(runs: Sequence[RunRecord], force: bool) -> list[str]:
    """Say of runs why they are not comparable.

    Raises:
        ValueError: they were evaluated on other data or with other tokenizers, and it was not forced.
    """
    warnings = []
    for name, what in {**_SAME_DATA, "split": "split"}.items():
        values = {run.name: run.split if name == "split" else getattr(run.data, name) for run in runs}
        first = runs[0].name
        other = next((run for run, value in values.items() if value != values[first]), None)
        if other is not None:
            digits = 8 if name.endswith("sha256") else None
            told = " and ".join(str(values[run])[:digits] for run in (first, other))
            message = f"{first} and {other} have another {what} ({name}: {told})"
            if not force:
                raise ValueError(f"{message}: their likelihoods can't be compared; leave one out, or say --force")
            warnings.append(f"{message}: compare with care.")
    return warnings
