"""Models of experiments: their texts at the block size that is named, runs of one setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from text_figures import per_token

from hybrid.data.batches import PackedTokens
from hybrid.experiments.measuring.subject import Subject, load_runs
from hybrid.lm import LanguageModel


def test_texts_are_judged_at_the_block_size_that_is_named(lm: LanguageModel, split: PackedTokens) -> None:
    texts = split.rows(range(3)).tokens[:, :10]
    subject = Subject(lm, 4, 10)
    assert subject.nats(texts) == pytest.approx(per_token(lm, texts, 4, "bound", draws=8))
    assert subject.exact_nats(texts) == pytest.approx(per_token(lm, texts, 1, "exact"))
    assert subject.nats(texts) != pytest.approx(subject.exact_nats(texts), rel=1e-3)


def test_runs_of_one_setting_differ_in_their_seed_alone(copy_of_trained: Path, tmp_path: Path) -> None:
    other = shutil.copytree(copy_of_trained, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    for old, new, key in (
        ("  seed: 0", "  seed: 5", None), ("  steps: 8", "  steps: 9", "trainer.steps"),
        ("  seq_len: 32", "  seq_len: 16", "data.seq_len"), ("  lr: 0.01", "  lr: 0.02", "optim.lr"),
    ):  # fmt: skip
        assert text.count(f"{old}\n") == 1, old
        (other / "config.yaml").write_text(text.replace(f"{old}\n", f"{new}\n"))
        if key is None:
            assert [m.config.run.seed for m in load_runs([str(copy_of_trained), str(other)], "cpu")] == [0, 5]
            continue
        with pytest.raises(ValueError, match=f"differs from .* in {key}; leave it out"):
            load_runs([str(copy_of_trained), str(other)], "cpu")
