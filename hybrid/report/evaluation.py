"""Read what hybrid.evaluate has written of a run, eval.json, and check every field that is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.evaluation.results import DecoderResult
from hybrid.evaluation.setting import SETTING_KEYS
from hybrid.likelihoods.rows import SplitLikelihood
from hybrid.storage.fields import Fields
from hybrid.storage.json_files import read_json

COMPARED = ("bound", "exact")
"""Likelihoods of runs that are compared with each other."""

_COMPARED_METRICS = ("entropy", "judge_nats_per_byte")


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

    likelihoods: list[SplitLikelihood]  # of COMPARED
    data: Facts
    is_of_own_text: bool  # not that of --data; False if it does not say
    split: str
    rows: int
    draws: int
    machine: str  # processor or GPU
    precision: str
    checkpoint: dict[str, Any] | None  # step and hash of what was evaluated; None: made by an earlier version
    generated: list[DecoderResult]  # of the decoders that wrote texts, and of the real text
    how_generated: dict[str, float | str | None]
    evaluation_model: dict[str, Any] | None  # name, path and, if known, checkpoint

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Raises a ValueError that names the file and the field if it is not an evaluation, or damaged."""
        content = Fields(read_json(path), str(path))
        settings, environment = content.inner("settings"), content.inner("environment")
        lines = [line for line in content.rows("results") if line.text("likelihood") in COMPARED]
        other = settings.text("data", None)
        split = settings.text("split", None) or ("validation" if other is None else "all")
        checkpoint, model = content.inner("checkpoint", None), content.inner("judge", None)
        return cls(
            likelihoods=[SplitLikelihood.from_json(line) for line in lines],
            data=Facts.read(content.inner("data")),
            is_of_own_text="data" in settings.content and other is None,
            split=split,
            rows=settings.integer("rows"),
            draws=settings.integer("draws"),
            machine=machine_name(environment),
            precision=environment.text("precision", None) or settings.text("precision", "fp32"),
            checkpoint=None if checkpoint is None else _identity(checkpoint),
            generated=[_decoder_result(line) for line in content.rows("generation", [])],
            how_generated={
                **{name: settings.number(name, None) for name in SETTING_KEYS},
                "latent": settings.text("latent", None) or "fresh",
            },
            evaluation_model=None if model is None else _evaluation_model(model),
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


def _decoder_result(line: Fields) -> DecoderResult:
    for name in _COMPARED_METRICS:
        line.number(name, None, least=0)  # refuses what is of another kind
    return DecoderResult.from_json(line)


def _evaluation_model(model: Fields) -> dict[str, Any]:
    checkpoint = model.inner("checkpoint", None)
    found = {"name": model.text("name"), "path": model.text("path")}
    return {**found, "checkpoint": None if checkpoint is None else _identity(checkpoint)}


def _identity(checkpoint: Fields) -> dict[str, Any]:
    return {"step": checkpoint.integer("step", 0, None), "sha256": checkpoint.text("sha256")}
