"""The configs that ship: what their comments say of them is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hybrid.config import Config, differences, load_config, resolve_block_sizes
from hybrid.model import Transformer

REPO = Path(__file__).parents[2]
SWEEPS = sorted((REPO / "configs" / "sweeps").glob("*.yaml"))
CONFIGS = sorted(set((REPO / "configs").rglob("*.yaml")) - set(SWEEPS))
GPU = [path for path in CONFIGS if path.parent.name == "gpu"]
ABLATIONS = [path for path in CONFIGS if path.parent.name == "block_size" and path.stem != "base"]
VOCAB = {"byte": 257}  # a BPE has data.vocab_size, and a model of others its own

pytestmark = pytest.mark.usefixtures("beside_models")


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def head(path: Path) -> str:
    """The comment at the head of a file, as one line."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(line.lstrip("# ") for line in lines)


def on_meta(config: Config) -> Transformer:
    vocab = config.model.vocab_size or VOCAB.get(config.data.tokenizer, config.data.vocab_size)
    with torch.device("meta"):
        return Transformer(config.model, vocab, vocab - 1)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_builds(path: Path) -> None:
    config = load_config(path)
    model = on_meta(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert resolve_block_sizes(config.objective.block_size, config.data.seq_len)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_begins_with_a_comment_that_gives_its_command(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    commands = (f"python train.py --config {name_of(path)}", "python train.py --config configs/block_size/$b.yaml")
    assert any(command in head(path) for command in commands)


def test_names_of_runs_differ() -> None:
    names = [load_config(path).run.name for path in CONFIGS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", [path for path in GPU if path.stem != "7b"], ids=name_of)
def test_gpu_configs_have_the_sizes_of_the_literature(path: Path) -> None:
    config = load_config(path)
    assert (config.model.n_layers, config.model.dim, config.model.n_heads) == (12, 768, 12)
    seq_len, tokens = (128, 65.5e9) if path.stem.startswith("lm1b") else (1024, 524e9)
    assert config.data.seq_len == seq_len
    assert config.trainer.steps * config.trainer.batch_tokens == pytest.approx(tokens, rel=1e-2)


@pytest.mark.parametrize("stem", ["openwebtext", "lm1b"])
def test_parameter_counts_are_those_of_the_comments(stem: str) -> None:
    path = REPO / "configs" / "gpu" / f"{stem}.yaml"
    model = on_meta(load_config(path))
    counts = [int(n) * 1_000_000 for n in re.findall(r"(\d+) million", head(path))]
    total, ends = counts
    assert model.n_parameters() == pytest.approx(total, abs=500_000)
    assert model.embedding.weight.numel() + model.head_matrix().numel() == pytest.approx(ends, abs=500_000)


@pytest.mark.parametrize("path", GPU, ids=name_of)
def test_a_hub_corpus_leaves_the_commit_to_the_user(path: Path) -> None:
    assert load_config(path).data.revision is None
    assert "data.revision=COMMIT" in head(path)
    assert load_config(path, [f"data.revision={'a' * 40}"]).data.revision == "a" * 40


def test_ablations_differ_from_their_base_in_the_block_size_alone() -> None:
    base = load_config(REPO / "configs" / "block_size" / "base.yaml")
    for path in ABLATIONS:
        config = load_config(path)
        assert set(differences(base, config)) <= {"objective.block_size", "run.name"}, path
        assert config.objective.block_size == int(path.stem)
        assert config.run.name == f"b{path.stem}"
    assert sorted(int(path.stem) for path in ABLATIONS) == [1, 2, 4, 8, 16, 64, 256]
    assert base.data.seq_len == 256


@pytest.mark.parametrize(
    "config, base, keys",
    [
        ("ar", "bytes", {"model.context", "model.prediction", "objective.block_size"}),
        ("masked", "bytes", {"objective.block_size"}),
        ("mixed", "bytes", {"objective.block_size", "eval.block_sizes"}),
        ("block_size/base", "bytes", {"data.seq_len"}),
        ("gpu/openwebtext_ar", "gpu/openwebtext", {"model.context", "model.prediction", "objective.block_size"}),
        ("gpu/openwebtext_masked", "gpu/openwebtext", {"objective.block_size"}),
        ("gpu/lm1b_ar", "gpu/lm1b", {"model.context", "model.prediction", "objective.block_size"}),
        ("gpu/lm1b_masked", "gpu/lm1b", {"objective.block_size"}),
    ],
)
def test_variants_differ_in_what_they_are_about(config: str, base: str, keys: set[str]) -> None:
    left, right = (load_config(REPO / "configs" / f"{name}.yaml") for name in (base, config))
    assert set(differences(left, right)) <= keys | {"run.name"}


def test_mixed_is_evaluated_at_more_sizes_than_it_is_trained_on() -> None:
    config = load_config(REPO / "configs" / "mixed.yaml")
    assert set(config.objective.block_size) < set(config.eval.block_sizes)


def test_an_adaptation_has_the_network_that_it_starts_from() -> None:
    """What its file says of the network alone is not theirs: here a tiny one, by the name of the real one."""
    config = load_config(REPO / "configs" / "adapt" / "smollm2.yaml")
    assert (config.model.dim, config.model.vocab_size, config.model.begin_token_id) == (32, 300, 256)
    assert (config.model.context, config.model.prediction) == ("causal", "next_token")
    assert config.data.tokenizer == config.trainer.init_from == "models/smollm2"
    assert config.trainer.steps * config.trainer.batch_tokens == 204_800
