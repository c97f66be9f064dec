"""Runs that several experiments read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid.config import load_config
from hybrid.runs.run import Run


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> list[Path]:
    """Two seeds of a tiny model of sums, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for seed in (0, 1):
        config = load_config(
            "configs/sums.yaml",
            [
                *("data.corpus.digits=2", "data.corpus.examples=400", "data.seq_len=10", "model.dim=16"),
                *("objective.block_size=[1,3]", "trainer.steps=4", "trainer.batch_tokens=40", "optim.warmup_steps=2"),
                *("eval.sample_prompts=[]", f"run.seed={seed}", f"run.name=s{seed}", f"run.folder={folder}"),
            ],
        )
        run = Run.of(config)
        run.open()
        run.train()
        found.append(run.folder)
    return found
