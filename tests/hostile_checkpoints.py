"""Hostile inputs that are read: a trained run of which something is damaged, gone, or of another type."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import torch
from hostile_case import TINY, Case, Change
from safetensors.torch import load_file, save_file

ODD_JSON = ["null", "true", "-1", "0", "1e308", "1e999", "NaN", "9" * 5000, '"x"', '"' + "x" * 100_000 + '"', "[]",
            "{}", "[[1]]",
            "[" * 100_000 + "]" * 100_000, '{"a": null}', '"\\ud800"', "1.5", '"\\u0000"', '"../../x"']  # fmt: skip


REPORTED = ("environment.json", "eval.json", "metrics.jsonl")
"""Files that the report above all reads."""


def checkpoint(rng: random.Random) -> Case:
    """A command that reads a trained run in which one file is not as it was written."""
    about, change, must_fail = rng.choice((_tensors, _tensors, _json, _json, _json, _any_file, _text))(rng)
    train = [*kills.TRAINED, "trainer.steps=6"]
    report = about.startswith(REPORTED) and rng.random() < 0.7
    program, words = ("-m hybrid.report", ["runs/tiny"]) if report else rng.choice((
        ("generate.py", ["--checkpoint", "runs/tiny", "--max-new-tokens", "4"]),
        ("generate.py", ["--checkpoint", "runs/tiny", "--max-new-tokens", "4", "--decoder", "margin", "--json"]),
        ("-m hybrid.evaluate", ["--checkpoint", "runs/tiny", "--rows", "1", "--draws", "1"]),
        ("-m hybrid.report", ["runs/tiny"]),
        ("-m hybrid.report", ["runs/tiny", "--output", "out.md"]),
        ("train.py", train),
        ("train.py", train),
        ("train.py", [*TINY, "run.name=other", "trainer.init_from=runs/tiny", "--dry-run"]),
    ))  # fmt: skip
    reads = "resume" if words is train else program
    return Case(program, words, [change], refused=True if reads in must_fail else None, about=about)


Damage = tuple[str, Change, tuple[str, ...]]
"""What it is called, what it does, and which commands must refuse it."""


def _step(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def seal(folder: Path) -> None:
    """Bring the sizes and hashes of the manifest up to date, so that only what reads the content can tell."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = [file for file in folder.iterdir() if file != path and file.is_file()]
    manifest["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
    path.write_text(json.dumps(manifest))


WRONG_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "infinite": lambda t: torch.full_like(t, float("inf")),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "flat": lambda t: t.reshape(-1)[None],
    "longer": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]),
    "a number": lambda t: t.reshape(-1)[0].clone() if t.ndim else torch.stack([t, t]),
    "empty": lambda t: t[:0].clone() if t.ndim else t.reshape(1)[:0].clone(),
}


def _tensors(rng: random.Random) -> Damage:
    """Weights, optimizer state or averages of another kind, the manifest sealed again."""
    group = rng.choice(("model", "optimizer", "ema"))
    how = rng.choice([*WRONG_TENSORS, "missing", "unknown", "renamed"])
    which = rng.randrange(1000)

    def change(folder: Path) -> None:
        step = _step(folder / "runs" / "tiny")
        tensors = load_file(step / f"{group}.safetensors")
        name = sorted(tensors)[which % len(tensors)]
        if how in WRONG_TENSORS:
            tensors[name] = WRONG_TENSORS[how](tensors[name])
        elif how == "unknown":
            tensors["unknown"] = torch.ones(3)
        else:
            tensor = tensors.pop(name)
            if how == "renamed":
                tensors[f"{name}x"] = tensor
        save_file(tensors, step / f"{group}.safetensors")
        seal(step)

    read_by = {"model": ("resume",), "optimizer": ("resume",), "ema": ("resume", "generate.py", "-m hybrid.evaluate")}
    return f"{group}.safetensors: tensor {which} {how}, sealed", change, read_by[group]


def _json(rng: random.Random) -> Damage:
    """A value of a JSON file, or all of it, of another type."""
    name = rng.choice(("state.json", "state.json", "manifest.json", "environment.json", "eval.json", "eval.json",
                       "metrics.jsonl", "metrics.jsonl", "tokenizer_kind.json"))  # fmt: skip
    odd = rng.choice(ODD_JSON)
    inner, whole, sealed = rng.randrange(10**6), rng.random() < 0.25, rng.random() < 0.8

    def change(folder: Path) -> None:
        path = sorted((folder / "runs" / "tiny").rglob(name))[-1]
        lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
        number = inner % len(lines)
        lines[number] = odd if whole else _retyped(json.loads(lines[number]), inner, odd)
        path.write_text("\n".join(lines) + "\n")
        if sealed and (path.parent / "manifest.json").is_file() and path.name != "manifest.json":
            seal(path.parent)

    where = "all of it" if whole else f"value {inner}"
    return f"{name}: {where} {odd[:20]}{', sealed' if sealed else ''}", change, ()


def _retyped(value: Any, number: int, odd: str) -> str:
    """The JSON text of `value` with one of its parts, near the top rather than deep, replaced by `odd` or removed."""
    rng = random.Random(number)
    holder, key = [value], 0
    while isinstance(holder[key], (dict, list)) and holder[key] and (holder[key] is value or rng.random() < 0.6):
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if holder[key] is value:
        return odd
    if rng.random() < 0.2:
        del holder[key]
        return json.dumps(value)
    holder[key] = "@odd@"
    return json.dumps(value).replace('"@odd@"', odd)


def _any_file(rng: random.Random) -> Damage:
    """A file of the run that is gone, cut, altered, or something else."""
    which, how = (
        rng.randrange(1000),
        rng.choice(("gone", "cut", "empty", "flipped", "a folder", "bytes", "swapped", "a loop")),
    )
    sealed, noise = rng.random() < 0.5, rng.randbytes(200)

    def change(folder: Path) -> None:
        files = sorted(path for path in (folder / "runs" / "tiny").rglob("*") if path.is_file())
        path, other = files[which % len(files)], files[(which * 7 + 1) % len(files)]
        data = path.read_bytes()
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a loop":
            path.symlink_to(path.name)
        elif how == "swapped":
            shutil.copyfile(other, path) if other.exists() else path.write_bytes(b"")
        elif how != "gone":
            flipped = bytearray(data)
            for place in range(which % 13, len(data), max(len(data) // 5, 1)):
                flipped[place] ^= 0xFF
            path.write_bytes(
                {"cut": data[: len(data) // 2], "empty": b"", "flipped": bytes(flipped), "bytes": noise}[how]
            )
        if sealed and path.name != "manifest.json" and (path.parent / "manifest.json").is_file():
            seal(path.parent)

    return f"file {which} {how}{', sealed' if sealed else ''}", change, ()


def _text(rng: random.Random) -> Damage:
    """Pointers, settings and lines of metrics that are not what was written."""
    name, content = rng.choice((
        ("checkpoints/latest", "step-99999999\n"), ("checkpoints/latest", ""), ("checkpoints/latest",
        "../../../mine.txt"),
        ("checkpoints/latest", "\0"), ("checkpoints/best", "step-00000004"), ("checkpoints/best",
        "step-00000004\nnan\n"),
        ("checkpoints/best", "x" * 100_000), ("config.yaml", ""), ("config.yaml", "- 1\n"), ("config.yaml",
        "model: {dim: 99999999999}\n"),
        ("config.yaml", "data: {corpus: '', tokenizer: nothere}\n"), ("config.yaml", "model: {dim: 16, n_heads: 0}\n"),
        ("metrics.jsonl", ""), ("metrics.jsonl", '{"step": 1, "time": 0'), ("metrics.jsonl",
        '{"step": 3{"step": 41}\n'),
        ("metrics.jsonl", '{"step": 1, "time": 0, "val/nelbo": "x"}\n'), ("metrics.jsonl",
        '{"step": -5, "time": NaN}\n' * 3),
        ("metrics.jsonl", '{"step": 1e400, "time": 0}\n'), ("metrics.jsonl", "[" * 200_000 + "\n"), ("eval.json", "{}"),
        ("eval.json", '{"results": []}'), ("eval.json", '{"results": [{}]}'), ("eval.json", '{"results": null}'),
        ("eval.json", "[]"),
    ))  # fmt: skip
    return f"{name}: {content[:40]!r}", lambda folder: _write(folder / "runs" / "tiny" / name, content), ()


def _write(path: Path, content: str) -> None:
    path.write_text(content)
