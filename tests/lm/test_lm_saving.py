"""Loading and saving: the same model again, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Configure
from safetensors.torch import load_file
from torch import Tensor

import hybrid
from hybrid.checkpoints.finding import find_checkpoint
from hybrid.checkpoints.module_state import module_tensors
from hybrid.checkpoints.tensor_files import load_group
from hybrid.lm import load
from hybrid.model.fused import is_fused
from hybrid.runs.run import Run


def same_results(a: hybrid.LanguageModel, b: hybrid.LanguageModel, tokens: Tensor) -> None:
    for size, method in ((4, "bound"), (4, "enumerate"), (1, "exact")):
        x, y = (lm.nll(tokens, size, method, draws=3) for lm in (a, b))
        assert torch.equal(x.nll, y.nll) and torch.equal(x.stderr, y.stderr)
    prompts = [[], [1, 2, 3], [4] * 9]
    assert a.generate(prompts, 8, seed=1).tokens == b.generate(prompts, 8, seed=1).tokens


def test_saving_and_loading_gives_the_same_model(lm: hybrid.LanguageModel, tokens: Tensor, tmp_path: Path) -> None:
    folder = lm.save(tmp_path / "deep" / "saved")
    again = hybrid.load(folder)
    same_results(lm, again, tokens)
    assert again.config == lm.config and again.tokenizer.fingerprint == lm.tokenizer.fingerprint
    assert again.block_sizes == [4, 1] and again.mask_token_id == lm.tokenizer.vocab_size
    # What was loaded can be saved again, and read without the run that it came from.
    moved = shutil.move(hybrid.load(folder).save(tmp_path / "second"), tmp_path / "moved")
    same_results(lm, hybrid.load(moved), tokens)


def test_what_a_saved_folder_holds(lm: hybrid.LanguageModel, tmp_path: Path) -> None:
    folder = lm.save(tmp_path / "saved")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.yaml", "tokenizer", "model.json", "README.md", "manifest.json",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    for part in ("# tiny", "hybrid.load", "| block_sizes | [4, 1] |", "| seq_len | 32 |", "| context | block_causal |"):
        assert part in card
    facts = json.loads((folder / "model.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert facts["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert facts["mask_token_id"] == facts["vocab_size"] == facts["end_of_text"] + 1
    assert [path for path in tmp_path.iterdir() if path != folder] == []


def test_saving_replaces_its_own_folder_and_no_other(lm: hybrid.LanguageModel, tokens: Tensor, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="exists and was not written by hybrid"):
        lm.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    lm.save(tmp_path / "saved")
    lm.save(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    lm.save(tmp_path / "empty")
    same_results(lm, hybrid.load(tmp_path / "empty"), tokens)


def test_averaged_weights_are_taken_where_there_are_any(
    lm: hybrid.LanguageModel, trained: Path, configure: Configure, tmp_path: Path
) -> None:
    step = find_checkpoint(trained)
    averaged, own = load_file(step / "ema.safetensors"), load_file(step / "model.safetensors")
    assert torch.equal(lm.model.embedding.weight, averaged["embedding.weight"])
    assert not torch.equal(lm.model.embedding.weight, own["embedding.weight"])
    run = Run.of(configure(tmp_path, "optim.ema_decay=0", "trainer.steps=1", "eval.sample_tokens=0"))
    run.open()
    run.train()
    assert torch.equal(hybrid.load(run.folder).model.embedding.weight, run.model.embedding.weight)


def test_a_model_with_every_option_survives(configure: Configure, tmp_path: Path) -> None:
    options = [
        "model.context=causal", "model.prediction=next_token", "model.tied_embeddings=true", "model.qk_norm=false",
        "model.n_kv_heads=1", "data.document_mask=true", "objective.block_size=seq_len", "trainer.steps=1",
    ]  # fmt: skip
    run = Run.of(configure(tmp_path, *options))
    run.open()
    run.train()
    lm = hybrid.load(run.folder)
    assert lm.block_sizes == [32]
    ids = torch.tensor([lm.tokenizer.encode("The value of a list")])
    again = hybrid.load(lm.save(tmp_path / "saved"))
    assert torch.equal(lm.nll(ids, draws=2).nll, again.nll(ids, draws=2).nll)
    assert lm.generate([ids[0].tolist()], 5).tokens == again.generate([ids[0].tolist()], 5).tokens


def test_a_damaged_saved_model_is_refused(lm: hybrid.LanguageModel, tmp_path: Path) -> None:
    folder = lm.save(tmp_path / "saved")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"truncated\?"):
        hybrid.load(folder)
    weights.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        hybrid.load(folder)


def test_a_model_outlives_its_corpus(trained: Path, tmp_path: Path, tokens: Tensor) -> None:
    """Files that the configuration names are needed for training only."""
    folder = shutil.copytree(trained, tmp_path / "copy")
    config = (folder / "config.yaml").read_text()
    corpus = next(line for line in config.splitlines() if line.strip().startswith("corpus:"))
    tokenizer = next(line for line in config.splitlines() if line.strip().startswith("tokenizer:"))
    changed = config.replace(corpus, "  corpus: /gone/for/ever.txt").replace(tokenizer, "  tokenizer: gone.json")
    (folder / "config.yaml").write_text(changed)
    assert hybrid.load(folder).nll(tokens).nll.isfinite().all()


@pytest.mark.slow
def test_what_only_training_on_many_devices_needs_is_not_imported(trained):
    """Torch's compiler takes a second to import, FSDP half of one."""
    program = (
        "import sys, hybrid\n"
        f"lm = hybrid.load({str(trained)!r})\n"
        "lm.generate([[]], 4)\n"
        "print([name for name in ('torch._dynamo', 'torch.distributed.fsdp') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments, name",
    [
        *(({"path": value}, "path") for value in (None, 3, True, "", b"runs", ["runs"], {}, "a\0b")),
        *(({"device": value}, "device") for value in (None, 3, "", "meta", "mps", "cpu:7", "cuda:99", "gpu", "a\0b")),
        *(({"precision": value}, "precision") for value in (3, "", "fp64", ["fp32"])),
        *(({"dtype": value}, "dtype") for value in (3, "", "fp32", ["float32"])),
    ],
)
def test_what_cannot_be_loaded_names_the_argument(arguments: dict, name: str, trained: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: ") as caught:
        hybrid.load(**{"path": trained, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [300, 5000, 70_000])
def test_a_path_that_no_file_system_takes_is_one_line(length: int) -> None:
    with pytest.raises(ValueError, match=r"does not exist|is not a path"):
        hybrid.load("x" * length)


def test_a_device_object_is_a_device(trained: Path) -> None:
    assert hybrid.load(trained, device=torch.device("cpu")).device.type == "cpu"


def test_a_model_that_has_generated_is_saved_as_it_was_trained(trained, tmp_path):
    """Its own weights are fused by then; files never see those."""
    fresh = load(trained)
    originals = {name: tensor.clone() for name, tensor in module_tensors(fresh.model).items()}
    fresh.generate([[1]], 4)
    assert is_fused(fresh.model)
    saved = load_group(fresh.save(tmp_path / "saved"), "model")
    assert set(saved) == set(originals)
    assert all(torch.equal(saved[name], tensor) for name, tensor in originals.items())


def test_weights_that_have_changed_since_are_not_saved_as_these(copy_of_trained, tmp_path):
    lm = load(copy_of_trained)
    lm.generate([[1]], 4)
    step = max((copy_of_trained / "checkpoints").glob("step-*"))
    shutil.rmtree(step)
    with pytest.raises(ValueError, match=r"save: the weights were loaded from .*, which has changed since; load them"):
        lm.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_that_is_to_be_trained_on_keeps_its_weights(trained):
    lm = load(trained)
    lm.model.train()
    lm.generate([[1]], 4)
    assert not is_fused(lm.model) and len(list(lm.model.layers.parameters())) > 0
