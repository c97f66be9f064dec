"""What hybrid.evaluate has written of a run: eval.json, every field that is used checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.report.fields import Fields, is_number
from hybrid.storage.json_files import read_json

LIKELIHOODS = ("bound", "exact")
_HOW_TEXTS = ("samples", "new_tokens", "prompt_tokens", "temperature", "top_k", "top_p", "seed")
_OF_TEXTS = ("tokens_per_second", "nfe_per_token", "entropy", "judge_nats_per_byte")


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
class Facts:
    """What is compared and told of the data of a run, or of an evaluation."""

    corpus_sha256: str
    tokenizer: str
    tokenizer_fingerprint: str
    target_tokens: int  # of the validation split
    entropy_per_token: float | None
    source_nats_per_token: float | None

    @classmethod
    def read(cls, data: Fields) -> Facts:
        validation = data.inner("validation")
        return cls(
            data.text("corpus_sha256"), data.text("tokenizer"), data.text("tokenizer_fingerprint"),
            validation.integer("target_tokens"), data.number("entropy_per_token", None),
            validation.number("source_nats_per_token", None),
        )  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """One eval.json."""

    likelihoods: list[Measured]
    data: Facts
    is_of_own_text: bool  # not that of --data; False if it does not say
    split: str
    rows: int
    draws: int
    machine: str  # processor or GPU
    precision: str
    checkpoint: dict[str, Any] | None  # step and hash of what was evaluated; None: made by an earlier version
    generated: list[dict[str, Any]]  # lines of the decoders that wrote texts, and of the real text
    how_generated: dict[str, float | None]
    judge: dict[str, Any] | None  # name, path and, if known, checkpoint

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Raises a ValueError that names the file and the field if it is not an evaluation, or damaged."""
        content = Fields(read_json(path), str(path))
        settings, environment = content.inner("settings"), content.inner("environment")
        lines = [line for line in content.rows("results") if line.text("likelihood") in LIKELIHOODS]
        other = settings.text("data", None)
        split = settings.text("split", None) or ("validation" if other is None else "all")
        checkpoint, judge = content.inner("checkpoint", None), content.inner("judge", None)
        return cls(
            likelihoods=[_measured(line) for line in lines],
            data=Facts.read(content.inner("data")),
            is_of_own_text="data" in settings.content and other is None,
            split=split,
            rows=settings.integer("rows"),
            draws=settings.integer("draws"),
            machine=machine_name(environment),
            precision=settings.text("precision", "fp32"),
            checkpoint=None if checkpoint is None else _identity(checkpoint),
            generated=[_written(line) for line in content.rows("generation", [])],
            how_generated={name: settings.number(name, None) for name in _HOW_TEXTS},
            judge=None if judge is None else _judge(judge),
        )

    @property
    def how(self) -> str:
        """How the likelihoods were measured."""
        words = ["hybrid.evaluate", f"{self.rows or 'all'} rows", f"{self.draws} draws"]
        words += [] if self.split == "validation" else [f"split {self.split}"]
        return ", ".join([*words, *([] if self.precision == "fp32" else [f"{self.precision} on {self.machine}"])])


def machine_name(environment: Fields) -> str:
    """Processor or GPU, from `tracking.environment`."""
    device = environment.text("device", "cpu")
    return environment.text("processor") if device == "cpu" else device


def _measured(line: Fields) -> Measured:
    counts = line.inner("by_count", None)
    return Measured(
        line.integer("block_size", 1), line.text("likelihood"), line.number("nats_per_token"),
        line.number("stderr", None, least=0), line.number("bits_per_byte", None),
        {} if counts is None else counted(counts.content, ""),
    )  # fmt: skip


def counted(values: dict[str, Any], prefix: str) -> dict[int, float]:
    """`{"n001": 1.5}` -> `{1: 1.5}`: the numbers whose names go on behind `prefix` with a count."""
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return {int(n): float(value) for n, value in found.items() if n.isdecimal() and is_number(value)}


def _written(line: Fields) -> dict[str, Any]:
    """A line of generated texts; figures that it does not have are left out."""
    figures = {name: line.number(name, None, least=0) for name in _OF_TEXTS}
    known = {name: value for name, value in figures.items() if value is not None}
    size = line.integer("block_size", 1, None)
    return {"decoder": line.text("decoder"), **({} if size is None else {"block_size": size}), **known}


def _judge(judge: Fields) -> dict[str, Any]:
    checkpoint = judge.inner("checkpoint", None)
    found = {"name": judge.text("name"), "path": judge.text("path")}
    return {**found, "checkpoint": None if checkpoint is None else _identity(checkpoint)}


def _identity(checkpoint: Fields) -> dict[str, Any]:
    return {"step": checkpoint.integer("step", 0, None), "sha256": checkpoint.text("sha256")}
