"""Folders of runs that never were, for the tests of reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Configure

from hybrid.config import to_yaml
from hybrid.report.groups import Group, gather
from hybrid.report.run_record import find_runs

Make = Callable[..., Path]
AUTOREGRESSIVE = ("objective.block_size=1", "model.context=causal", "model.prediction=next_token")


@pytest.fixture(name="make")
def make_run(tmp_path: Path, configure: Configure) -> Make:
    """make(name, *overrides, nats=..., ...) writes the folder of a run that never was."""

    def run(
        name: str, *overrides: str, nats: float | dict[int, float] = 2.0, data: dict[str, Any] | None = None,
        decoders: dict[str, tuple[float, float, float]] | None = None, evaluated: bool = True, sample: str = "",
    ) -> Path:  # fmt: skip
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = configure(tmp_path, f"run.name={name}", "objective.block_size=4", *overrides)
        (folder / "config.yaml").write_text(to_yaml(config))
        facts: dict[str, Any] = {"corpus_sha256": "c0", "tokenizer_fingerprint": "t0", "tokenizer": "char"}
        facts |= {"validation": {"target_tokens": 9}, **(data or {})}
        environment = {
            "commit": "abcdef0123", "dirty": False, "device": "cpu", "processor": "a processor", "threads": 1,
            "libraries": {"torch": "2"}, "data": facts, "parameters": 1234,
        }  # fmt: skip
        (folder / "environment.json").write_text(json.dumps(environment))
        by_size = nats if isinstance(nats, dict) else {sizes_of(config)[0]: nats}
        values = {"val/nelbo": 9.0, "val/bits_per_byte": 18.0}
        for size, value in by_size.items():
            values |= {f"val/nelbo/b{size}": value + 1, f"val/stderr/b{size}": 0.01}
            values |= {f"val/likelihood/b{size}": "exact" if size == 1 else "bound", f"val_by_count/b{size}/n001": 1.5}
        records = [{"step": s, "time": 2.0 * s, "train/nelbo": 3.0 - s / 10} for s in range(1, 8)]
        records.append({"step": 8, "time": 16.0, "train/nelbo": 2.2, **values})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        (folder / "samples").mkdir()
        if sample:
            (folder / "samples" / "step-00000008.txt").write_text(sample)
        if evaluated:
            lines = [
                {
                    "block_size": size, "likelihood": "exact" if size == 1 else "bound", "nats_per_token": value,
                    "stderr": 0.0 if size == 1 else 0.02, "bits_per_byte": 2 * value,
                    "by_count": {str(n): value + n for n in range(1, size + 1)},
                }
                for size, value in by_size.items()
            ]  # fmt: skip
            result: dict[str, Any] = {
                "results": [*lines, {**lines[0], "likelihood": "policy"}], "data": facts,
                "settings": {"rows": 4, "draws": 2, "samples": 3, "temperature": 1.0}, "environment": environment,
            }  # fmt: skip
            if decoders:
                real = {"decoder": "(real text)", "judge_nats_per_byte": 1.0, "entropy": 3.0}
                result["generation"] = [real] + [
                    {
                        "decoder": name, "block_size": sizes_of(config)[0], "tokens_per_second": speed,
                        "nfe_per_token": 1.0, "entropy": entropy, "judge_nats_per_byte": quality,
                    }
                    for name, (speed, quality, entropy) in decoders.items()
                ]  # fmt: skip
                result["judge"] = {"name": "ar", "path": "runs/ar"}
            (folder / "eval.json").write_text(json.dumps(result))
        return folder

    return run


def sizes_of(config: Any) -> list[int]:
    sizes = config.objective.block_size
    return sizes if isinstance(sizes, list) else [sizes]


def groups_in(folder: Path) -> list[Group]:
    """Of all runs below a folder."""
    return gather(find_runs([folder])[0])


def lines_of(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """Label -> the points of the lines of a figure that are in its legend."""
    (axes,) = figure.axes
    return {
        line.get_label(): list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.get_lines()
        if not line.get_label().startswith("_") and len(line.get_xdata())
    }
