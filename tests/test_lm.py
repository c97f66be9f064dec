"""The handle of a trained model: saving and loading, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
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


@pytest.fixture(scope="module")
def lm(trained: Path) -> hybrid.LanguageModel:
    return hybrid.load(trained)


@pytest.fixture(scope="module")
def tokens(lm: hybrid.LanguageModel) -> Tensor:
    return torch.randint(0, lm.tokenizer.vocab_size, (3, 13), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tokens": torch.zeros(2, 3)}, r"tokens: \[2, 3\] torch\.float32 is not a non-empty int64 tensor"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens: \[3\] "),
        ({"tokens": torch.zeros(0, 3, dtype=torch.int64)}, "non-empty"),
        ({"tokens": [[1, 2]]}, "tokens: list is not"),
        ({"tokens": torch.full((1, 4), 10_000)}, r"tokens: 10000 is not in the vocabulary \(0 to \d+\)"),
        ({"tokens": torch.full((1, 4), -1)}, "tokens: -1 is not in the vocabulary"),
        ({"tokens": torch.zeros(1, 33, dtype=torch.int64)}, "rows of 33 exceed the context of 32"),
        ({"block_size": 0}, "block_size: 0 is too small"),
        ({"block_size": "eight"}, "block_size: 'eight' is not a block size"),
        ({"method": "exact"}, "'exact' is the likelihood at block size 1, not 4"),
        ({"method": "guess"}, "method: 'guess' is not one of"),
        ({"draws": 0}, "draws: 0 must be an integer of at least 1, or 'all'"),
        ({"draws": "many"}, "draws: 'many' must be"),
        ({"is_target": [True]}, r"is_target: \[True\] is not a bool tensor \[3, 13\], as tokens is"),
        ({"is_target": torch.ones(3, 12, dtype=torch.bool)}, r"is_target: \[3, 12\] torch.bool is not a bool tensor"),
        ({"is_target": torch.ones(3, 13)}, r"is_target: \[3, 13\] torch.float32 is not"),
    ],
)
def test_what_nll_refuses(arguments: dict, message: str, lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        lm.nll(**{"tokens": tokens, **arguments})


def test_what_generate_refuses(lm: hybrid.LanguageModel) -> None:
    for prompts, new, options, message in (
        ([[1], [lm.mask_token_id + 1]], 4, {}, r"token \d+ of prompt 1 is not in the vocabulary"),
        ([[1] * 30], 3, {}, "exceed the context of 32"),
        ([[1]], -1, {}, "must be an integer of at least 0"),
        ([[1]], 4, {"block_size": 33}, "block_size: 33 is larger"),
        ([[1]], 4, {"decoder": "nope"}, "decoder: 'nope' is not one of"),
        ([[1]], 4, {"decoder": {"name": "margin", "setps": 1}}, "setps"),
        ([[1]], 4, {"top_k": 1.5}, "top_k: 1.5 must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.generate(prompts, new, **options)


def test_a_size_that_was_not_trained_warns_at_the_caller(lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    for call in (
        lambda: lm.nll(tokens, 8),
        lambda: lm.logits(tokens, 8),
        lambda: lm.generate([[1]], 4, block_size=8),
    ):
        with pytest.warns(UserWarning, match=r"block_size: 8 was not trained \(trained: 4, 1\)"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.nll(tokens, 1)
        lm.nll(tokens)


def test_the_default_block_size_is_the_first_that_was_trained(lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    assert torch.equal(lm.nll(tokens).nll, lm.nll(tokens, 4).nll)
    assert torch.equal(lm.logits(tokens), lm.logits(tokens, 4))
    assert lm.generate([[1]], 8).tokens == lm.generate([[1]], 8, block_size=4).tokens
    assert lm.nll(tokens[:, :2]).nll.shape == (3,)  # a row shorter than a block


def test_logits_give_the_likelihood_of_block_size_1(lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    logits = lm.logits(tokens, 1)
    assert logits.shape == (3, 13, lm.tokenizer.vocab_size)
    expected = -logits.double().log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(lm.nll(tokens, 1, "exact").nll, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture
def joined_and_apart(lm: hybrid.LanguageModel) -> tuple[hybrid.LanguageModel, hybrid.LanguageModel]:
    """A model whose predictions depend much on what it sees, without and with data.document_mask."""
    joined = dataclasses.replace(lm, model=copy.deepcopy(lm.model))
    with torch.no_grad():
        joined.model.embedding.weight.mul_(20)
        joined.model.head_matrix().mul_(20)
    data = dataclasses.replace(lm.config.data, document_mask=True)
    return joined, dataclasses.replace(joined, config=dataclasses.replace(lm.config, data=data))


def test_with_document_mask_each_document_has_the_likelihood_that_it_has_alone(
    joined_and_apart: tuple[hybrid.LanguageModel, hybrid.LanguageModel], tokens: Tensor
) -> None:
    """Positions are relative and the first document ends where a block does, so its end changes nothing else."""
    (joined, apart), end = joined_and_apart, joined_and_apart[0].tokenizer.end_of_text
    rows = tokens.masked_fill(tokens == end, 1)
    rows[:, 7] = end
    ways = [(1, "exact", {}), (4, "bound", {"draws": "all"}), (4, "enumerate", {}), (4, "best_order", {})]
    for size, method, options in [*ways, (4, "policy", {"decoder": "margin"})]:
        expected = sum(joined.nll(part, size, method, **options).nll for part in (rows[:, :8], rows[:, 8:]))
        torch.testing.assert_close(apart.nll(rows, size, method, **options).nll, expected, rtol=1e-5, atol=1e-5)
        seen = joined.nll(rows, size, method, **options).nll
        assert ((seen - expected).abs() > 0.1).all(), "the first document would have mattered"
    torch.testing.assert_close(apart.logits(rows)[:, 8:], joined.logits(rows[:, 8:]), rtol=1e-4, atol=1e-4)


def test_with_document_mask_only_the_last_document_of_a_prompt_is_continued(
    joined_and_apart: tuple[hybrid.LanguageModel, hybrid.LanguageModel],
) -> None:
    (joined, apart), prompts = joined_and_apart, [[4, 2], [], [3, 1, 1, 5, 2]]
    longer = [[1, 2, 3, joined.tokenizer.end_of_text, *prompt] for prompt in prompts]
    options = {"decoder": "left_to_right", "temperature": 0, "stop_at_end": False}
    alone = joined.generate(prompts, 12, **options).tokens
    assert apart.generate(longer, 12, **options).tokens == alone
    assert [step.tokens for step in apart.stream(longer, 12, **options)][-1] == alone
    assert joined.generate(longer, 12, **options).tokens != alone, "the first document would have mattered"


def test_stream_ends_where_generate_does(lm: hybrid.LanguageModel) -> None:
    prompts = [[1, 2], []]
    steps = list(lm.stream(prompts, 10, seed=2))
    result = lm.generate(prompts, 10, seed=2)
    assert steps[-1].tokens == result.tokens and steps[-1].nfe == result.nfe and steps[-1].done
    assert any(lm.mask_token_id in row for row in steps[0].tokens)
    assert not any(step.done for step in steps[:-1])


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
        *(({"precision": value}, "precision") for value in (None, 3, "", "fp64", ["fp32"])),
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


def test_likelihoods_do_not_depend_on_what_was_generated_before(trained):
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    one, other = load(trained), load(trained)
    other.generate([[1]], 4)
    assert torch.equal(one.nll(tokens).nll, other.nll(tokens).nll)
    assert torch.equal(one.logits(tokens), other.logits(tokens))


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


def test_a_continuation_has_the_likelihood_of_the_whole_less_that_of_its_context(
    lm: hybrid.LanguageModel, tokens: Tensor
) -> None:
    """At block size 1, and for whole blocks of the exact any-order likelihood; where nothing counts it is 0."""
    for size, method in ((1, "exact"), (4, "enumerate")):
        whole, context = lm.nll(tokens, size, method), lm.nll(tokens[:, :8], size, method)
        behind = (torch.arange(13) >= 8).expand(3, -1)
        found = lm.nll(tokens, size, method, is_target=behind)
        torch.testing.assert_close(found.nll, whole.nll - context.nll, rtol=0, atol=1e-4)
        assert found.tokens.tolist() == [5, 5, 5]
        assert lm.nll(tokens, size, method, is_target=torch.zeros_like(behind)).nll.tolist() == [0.0] * 3


@pytest.mark.parametrize("method", ["exact", "bound", "enumerate", "policy", "best_order", "importance"])
def test_what_counts_reaches_every_likelihood(method: str, lm: hybrid.LanguageModel) -> None:
    """Over all ends of one token behind a context that lies in the same block, probabilities sum to 1 (a bound: to no
    more). The token stands inside a block, so that the context before it is seen there too."""
    size = 1 if method == "exact" else 4
    vocab = lm.tokenizer.vocab_size
    rows = torch.tensor([[1, 2, 3, 1, 2, 3, v] for v in range(vocab)])
    is_target = (torch.arange(7) == 6).expand(vocab, -1)
    options = {"decoder": "margin"} if method == "policy" else {}
    draws = "all" if method == "bound" else 2
    found = lm.nll(
        rows,
        size,
        method,
        **({} if method in ("exact", "enumerate") else {"draws": draws}),
        is_target=is_target,
        **options,
    )
    assert float((-found.nll).exp().sum()) == pytest.approx(1, abs=1e-5)  # one token: the bound is tight
