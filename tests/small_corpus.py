"""A small corpus in a file, and what becomes of it, for the tests of data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hybrid.data.config import DataConfig
from hybrid.data.preparing import Data, prepare


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts_of(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["the", "cat", "sat", "é", "日本", "on", "mat."]
    return [" ".join(rng.choice(words, size=rng.integers(3, 30))) + f" {i}" for i in range(count)]


@pytest.fixture(name="corpus")
def corpus_file(tmp_path) -> str:
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts_of(200)])


def prepared(tmp_path: Path, **settings) -> Data:
    return prepare(DataConfig(**{"seq_len": 16, "cache_dir": str(tmp_path / "cache"), **settings}))


def cache_folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())
