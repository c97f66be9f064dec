"""What a run folder says of its run: settings, curves, likelihoods, generated texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hybrid.atomic import read_json
from hybrid.config import Config, load_config, resolve_block_sizes
from hybrid.tracking import last_validation, read_metrics

LIKELIHOODS = ("bound", "exact")
# What must agree for likelihoods to be comparable, by its path in the description of the data.
_SAME_DATA = {
    "corpus_sha256": "data",
    "validation.target_tokens": "validation text",
    "tokenizer_fingerprint": "tokenizer",
}


@dataclass(frozen=True)
class Measured:
    """A likelihood of the validation split, per target token or per byte."""

    block_size: int
    method: str  # "bound" or "exact"
    nats: float
    stderr: float | None  # of the noise in nats, None with one draw
    bits_per_byte: float | None  # None where the tokens are not the text
    by_count: dict[int, float]  # mean cross-entropy of a masked token by the number of masked tokens of its block

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte for each nat per token."""
        if self.bits_per_byte is None:
            return None
        return self.bits_per_byte / self.nats if self.nats else 0.0


@dataclass(frozen=True)
class RunRecord:
    """One run, read from its folder."""

    name: str
    folder: Path
    config: Config
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any] | None  # eval.json

    @classmethod
    def read(cls, folder: Path, name: str) -> RunRecord:
        """Raises a ValueError if the folder is no run, or one that has not been validated yet."""
        config = load_config(folder / "config.yaml", checked=False)
        evaluation = read_json(folder / "eval.json") if (folder / "eval.json").is_file() else None
        run = cls(name, folder, config, read_json(folder / "environment.json"), read_metrics(folder), evaluation)
        if not run.likelihoods:
            raise ValueError(
                f"{folder}: neither eval.json nor a validation in metrics.jsonl; finish the run (trainer.resume=auto), "
                f"or evaluate it: python -m hybrid.evaluate --checkpoint {folder}"
            )
        return run

    @cached_property
    def block_sizes(self) -> list[int]:
        """Those it was trained on."""
        return resolve_block_sizes(self.config.objective.block_size, self.config.data.seq_len)

    @cached_property
    def likelihoods(self) -> list[Measured]:
        """Of eval.json; without it those of the last validation during training."""
        if self.evaluation is not None:
            lines = [line for line in self.evaluation["results"] if line["likelihood"] in LIKELIHOODS]
            return [_measured(line) for line in lines]
        last = last_validation(self.metrics) or {}
        bits = last.get("val/bits_per_byte")
        factor = None if bits is None else bits / last["val/nelbo"] if last.get("val/nelbo") else 0.0
        found = []
        for tag, method in last.items():
            if tag.startswith("val/likelihood/b"):
                size = tag.rpartition("/b")[2]
                nats, prefix = last[f"val/nelbo/b{size}"], f"val_by_count/b{size}/n"
                by_count = {int(key.removeprefix(prefix)): v for key, v in last.items() if key.startswith(prefix)}
                stderr = last[f"val/stderr/b{size}"]
                found.append(
                    Measured(int(size), method, nats, stderr, None if factor is None else nats * factor, by_count)
                )
        return found

    def own(self) -> Measured | None:
        """The likelihood at the block size that it was trained for, if there is one."""
        if len(self.block_sizes) > 1:
            return None
        return next((m for m in self.likelihoods if m.block_size == self.block_sizes[0]), None)

    @property
    def how_evaluated(self) -> str:
        if self.evaluation is None:
            e = self.config.eval
            return f"during training, {e.rows or 'all'} rows, {e.draws} draws"
        s = self.evaluation["settings"]
        return f"hybrid.evaluate, {s['rows'] or 'all'} rows, {s['draws']} draws"

    @property
    def is_evaluated_whole(self) -> bool:
        """Whether on all rows of the validation split."""
        return not (self.config.eval.rows if self.evaluation is None else self.evaluation["settings"]["rows"])

    @property
    def generated(self) -> list[dict[str, Any]]:
        """Lines of the decoders that wrote texts, and of the real text."""
        return [] if self.evaluation is None else self.evaluation.get("generation", [])

    @property
    def judge(self) -> dict[str, Any] | None:
        """Who read the generated texts."""
        return None if self.evaluation is None else self.evaluation.get("judge")

    @property
    def is_autoregressive(self) -> bool:
        """An ordinary GPT: one causal pass, each token read off the row before it."""
        m = self.config.model
        return self.block_sizes == [1] and (m.context, m.prediction) == ("causal", "next_token")

    @property
    def data(self) -> dict[str, Any]:
        """The text that it was evaluated on."""
        return self.environment["data"] if self.evaluation is None else self.evaluation["data"]

    @property
    def truth(self) -> tuple[float, float] | None:
        """If the source of the text is known, nats per token: its entropy, and what it gives the validation split."""
        entropy, own = self.data.get("entropy_per_token"), self.data["validation"].get("source_nats_per_token")
        return None if entropy is None or own is None else (entropy, own)

    @property
    def step(self) -> int:
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def seconds(self) -> float:
        return self.metrics[-1]["time"] if self.metrics else 0.0

    def tokens(self, step: int) -> int:
        return step * self.config.trainer.batch_tokens

    def curve(self, tag: str) -> list[tuple[int, float, float]]:
        """(step, seconds, value) of a metric where it was logged."""
        return [(r["step"], r["time"], r[tag]) for r in self.metrics if r.get(tag) is not None]

    @cached_property
    def sample(self) -> str:
        """The last texts that it wrote during training."""
        files = sorted((self.folder / "samples").glob("step-*.txt"))
        return files[-1].read_text(encoding="utf-8", errors="replace") if files else ""


def _measured(line: dict[str, Any]) -> Measured:
    """From a line of eval.json."""
    by_count = {int(n): loss for n, loss in line.get("by_count", {}).items()}
    nats, bits = line["nats_per_token"], line["bits_per_byte"]
    return Measured(line["block_size"], line["likelihood"], nats, line["stderr"], bits, by_count)


def find_runs(paths: Sequence[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs at, or below, some paths, named by what tells their folders apart; and why others there are left out.

    Raises:
        ValueError: a path at which there is none that can be read.
    """
    folders: dict[Path, bool] = {}  # whether it was named itself
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name runs, or a folder of runs")
        found = [folder for folder in _runs_below(path) if (folder / "environment.json").is_file()]
        if not found:
            raise ValueError(f"{path}: no run in it (a run has config.yaml and environment.json)")
        folders |= {folder.resolve(): folder == path for folder in found}
    parts = [folder.parts for folder in folders]
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))))
    if len(folders) == 1:
        shared -= 1
    runs, left_out = [], []
    for folder, is_named in folders.items():
        try:
            runs.append(RunRecord.read(folder, "/".join(folder.parts[shared:])))
        except ValueError as error:
            if is_named or len(folders) == 1:
                raise
            left_out.append(f"Left out: {error}")
    if not runs:
        raise ValueError(f"{paths[0]}: none of its {len(folders)} runs can be read; {left_out[0]}")
    return runs, left_out


def _runs_below(path: Path) -> list[Path]:
    """A run does not hold other runs."""
    if (path / "config.yaml").is_file():
        return [path]
    return [run for child in sorted(p for p in path.iterdir() if p.is_dir()) for run in _runs_below(child)]


def refuse_different_data(runs: Sequence[RunRecord], force: bool) -> list[str]:
    """What must be said of runs that are not comparable.

    Raises:
        ValueError: they were evaluated on other data or with other tokenizers, and it was not forced.
    """
    warnings = []
    for path, what in _SAME_DATA.items():
        values = {run.name: _look_up(run.data, path) for run in runs}
        first = runs[0].name
        other = next((name for name, value in values.items() if value != values[first]), None)
        if other is not None:
            message = f"{first} and {other} have another {what} ({path}: {values[first]} and {values[other]})"
            if not force:
                raise ValueError(f"{message}: their likelihoods can't be compared; leave one out, or say --force")
            warnings.append(f"{message}: compare with care.")
    return warnings


def _look_up(values: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values
