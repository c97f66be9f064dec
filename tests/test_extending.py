"""The examples of docs/extending.md do what the page says of them, as modules of a user's own."""

from __future__ import annotations

import importlib
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from documents import BLOCKS, EXAMPLES, FRAGMENTS, TABLES, importable_examples
from hugging_face_folders import write_folder
from toy import random_tokens, toy_model

import hybrid
from hybrid.data.batches import Batch
from hybrid.data.corpora import CORPORA
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.evaluation import METRICS, Texts
from hybrid.likelihoods import LIKELIHOODS, Rows
from hybrid.likelihoods.enumerated import mask_table
from hybrid.model.attention import Eager, select_backend
from hybrid.model.masks import TwoStream
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives import PROPOSALS, SCHEDULES, WEIGHTINGS, ObjectiveConfig, build_objective
from hybrid.objectives.build import build_estimator
from hybrid.objectives.noise import NoiseKeys
from hybrid.options import build


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[None]:
    with importable_examples(tmp_path):
        yield


def test_help_lists_the_entries_of_modules_that_are_named(command: Command, examples: None, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: {imports: [my_schedule]}")
    done = command("train.py", "--config", tmp_path / "mine.yaml", "--help")
    assert (done.code, done.err) == (0, "") and "smoothstep: alpha = 1 - t^2 (3 - 2t)" in done.out
    done = command("train.py", "run.imports=my_decoder", "--help")
    assert (done.code, done.err) == (0, "") and "strided: Every `stride`-th position at once" in done.out
    done = command("train.py", "trainer.stesp=3", "--help")
    assert done.code == 0 and "trainer.steps=" in done.out and "did you mean 'trainer.steps'" in done.err


def test_every_table_has_an_example() -> None:
    assert sorted(EXAMPLES) == [f"my_{name}" for name in TABLES]
    for block in BLOCKS:
        assert block.module is None or block.text == EXAMPLES[block.module], f"{block.module} differs: {block.page}"


def test_the_decoder_of_the_example_decodes(examples: None) -> None:
    importlib.import_module("my_decoder")
    results = []
    for cache in (True, False):
        decoder = build(DECODERS, {"name": "strided", "stride": 3}, "decoder")
        engine = Engine(toy_model(), 16, GenerationConfig(8, decoder, stop_at_end=False, cache=cache))
        results.append(engine.generate([[], [1, 2, 3]], 13))
    assert results[0].tokens == results[1].tokens
    assert [len(row) for row in results[0].tokens] == [13, 13]
    assert results[0].nfe == 2 * 3  # two blocks
    with pytest.raises(ValueError, match=r"decoder\.stride: 0"):
        build(DECODERS, {"name": "strided", "stride": 0}, "decoder")


def test_the_decoder_that_draws_two_tokens_jointly_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method `select` that a page shows alone: at temperature 0 it writes what left to right does."""
    (method,) = [fragment for fragment in FRAGMENTS if "def select(self, view, state)" in fragment]
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(method), namespace)

    @dataclass(frozen=True)
    class InPairs:
        select = namespace["select"]

        def start(self, view: Any) -> None:
            return None

    monkeypatch.setitem(DECODERS, "in_pairs", InPairs)
    greedy, drawn = {"temperature": 0.0}, {"seed": 3}
    texts = {}
    for name in ("in_pairs", "left_to_right"):
        for options in (greedy, drawn):
            engine = Engine(toy_model(), 16, GenerationConfig(4, name, stop_at_end=False, **options))
            texts[name, *options] = engine.generate([[], [1, 2, 3]], 9)
    assert texts["in_pairs", "temperature"].tokens == texts["left_to_right", "temperature"].tokens
    assert [len(row) for row in texts["in_pairs", "seed"].tokens] == [9, 9]
    assert texts["in_pairs", "seed"].nfe == texts["left_to_right", "seed"].nfe, "two tokens a step, by two forwards"


def test_the_objective_of_the_example_is_the_divergence_from_its_teacher(examples: None) -> None:
    importlib.import_module("my_objective")
    student, teacher = toy_model(), toy_model(seed=1)
    tokens = random_tokens(2, 4)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    config = ObjectiveConfig(name="distil", teacher="somewhere", weighting="bert", draws=2)
    noise = NoiseKeys(0, 1, torch.arange(2), 0, 2)
    masked = build_objective(config, teacher).draw(batch, noise, 4).masked  # one token each
    with torch.no_grad():
        p, q = (m.head(two_stream_hidden(m, tokens, masked, 4)).log_softmax(-1) for m in (teacher, student))
        taught, alike = (build_objective(config, of).loss(student, batch, noise, 4).total for of in (teacher, student))
    expected = float((p.exp() * (p - q)).sum() / 2)
    assert float(taught) == pytest.approx(expected) and expected > 0.01 and float(alike) == 0


def test_the_estimator_of_the_example_is_unbiased(examples: None) -> None:
    """By the law of its counts: P(n) times its weight must be 1/n for each number n of masked tokens."""
    importlib.import_module("my_estimator")
    estimator = build_estimator(ObjectiveConfig(estimator="many_masks"))
    rows, block_size = 4000, 4
    is_target = torch.ones(rows, 7, dtype=torch.bool)  # blocks of 4 and 3
    is_target[:, 6] = False  # which leaves 2 targets in the second
    masking = estimator.draw(NoiseKeys(0, 1, torch.arange(rows), 0, rows), is_target, block_size, 1, True)
    assert not masking.masked[..., 6].any()
    for block, length in ((slice(0, 4), 4), (slice(4, 7), 2)):
        masked = masking.masked[:, 0, block]
        weight = masking.weight[:, 0, block].double()
        n = masked.sum(-1)
        for count in range(1, length + 1):
            rows_of_count = n == count
            assert float(rows_of_count.double().mean()) == pytest.approx((2 * count - 1) / length**2, abs=0.03)
            expected = length**2 / (count * (2 * count - 1))
            torch.testing.assert_close(
                weight[rows_of_count][masked[rows_of_count]],
                torch.full((count * int(rows_of_count.sum()),), expected, dtype=torch.float64),
                rtol=1e-6,
                atol=0,
            )


def test_the_proposal_of_the_example_is_a_law_that_the_weights_make_up_for(examples: None) -> None:
    importlib.import_module("my_proposal")
    spec = {"name": "geometric", "ratio": 0.5}
    pi = build(PROPOSALS, spec, "objective.proposal").probabilities(3, 3)
    torch.testing.assert_close(pi, torch.tensor([0, 4, 2, 1], dtype=torch.float64) / 7)
    assert build(PROPOSALS, spec, "objective.proposal").probabilities(0, 3).tolist() == [1]
    estimator = build_estimator(ObjectiveConfig(proposal=spec))
    is_target = torch.ones(4000, 3, dtype=torch.bool)
    masking = estimator.draw(NoiseKeys(0, 1, torch.arange(4000), 0, 4000), is_target, 3, 1, True)
    n = masking.masked.sum(-1, keepdim=True)
    of_each = (1 / (n * pi[n])).expand_as(masking.masked)
    torch.testing.assert_close(masking.weight[masking.masked], of_each[masking.masked])
    assert [float((n == count).double().mean()) for count in (1, 2, 3)] == pytest.approx(pi[1:].tolist(), abs=0.03)
    with pytest.raises(ValueError, match=r"objective\.proposal\.ratio: 0"):
        build(PROPOSALS, {"name": "geometric", "ratio": 0.0}, "objective.proposal")


def test_the_weighting_of_the_example_lies_between_two_that_are_there(examples: None) -> None:
    importlib.import_module("my_weighting")
    for power, same in ((0.0, "elbo"), (1.0, "uniform")):
        mine = build(WEIGHTINGS, {"name": "power_of_n", "power": power}, "objective.weighting")
        for length in (0, 1, 5):
            expected = build(WEIGHTINGS, same, "objective.weighting").of_counts(length)
            torch.testing.assert_close(mine.of_counts(length), expected.double())
    assert float(build(WEIGHTINGS, "power_of_n", "objective.weighting").of_counts(5).sum()) == pytest.approx(5)


def test_the_schedule_of_the_example_is_consistent(examples: None) -> None:
    importlib.import_module("my_schedule")
    schedule = build(SCHEDULES, "smoothstep", "objective.schedule")
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(t)
    assert alpha[0] == 1 and alpha[-1] == 0
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(slope, schedule.derivative(t.detach()))
    estimator = build_estimator(ObjectiveConfig(estimator="time", schedule="smoothstep"))
    is_target = torch.ones(50, 8, dtype=torch.bool)
    masking = estimator.draw(NoiseKeys(0, 1, torch.arange(50), 0, 50), is_target, 4, 1, True)
    assert masking.weight[masking.masked].isfinite().all()


def test_the_backend_of_the_example_agrees_with_eager(examples: None) -> None:
    importlib.import_module("my_attention")
    backend = select_backend("double", torch.device("cpu"), True)
    model, tokens = toy_model(dtype=torch.float32), random_tokens(2, 10)
    pattern = TwoStream.of(10, 4)
    rows = torch.cat([tokens[:, : pattern.rows.n_clean], torch.full_like(tokens, model.mask_token_id)], dim=1)
    outputs = []
    for model.attend in (Eager(), backend):
        outputs.append(model(rows, pattern))
    torch.testing.assert_close(*outputs)


def test_the_likelihood_of_the_example_masks_each_token_alone(examples: None) -> None:
    importlib.import_module("my_likelihood")
    model, tokens = toy_model(), random_tokens(3, 10)
    rows = Rows.of(tokens, torch.arange(10).expand(3, -1) != 4)
    with torch.no_grad():
        got = LIKELIHOODS["pseudo"]().nll(model, rows, 4)
        blocks = mask_table(model, rows, 4)  # of 4, 4 and 2 tokens
    expected = -sum(table[:, 1 << i, i] for table, _ in blocks for i in range(table.shape[2]))
    torch.testing.assert_close(got.nll, expected)
    assert got.tokens.tolist() == [9] * 3


def test_the_metric_of_the_example_is_a_share_of_words(examples: None) -> None:
    importlib.import_module("my_metric")
    texts, real = Texts([], ["a b", "b c d"]), Texts([], ["b", "d e"])
    assert METRICS["shared_words"]().measure(texts, real) == {"shared_words": 3 / 5}


def test_the_corpus_of_the_example_reads_the_same_from_both_ends(examples: None, tmp_path: Path) -> None:
    importlib.import_module("my_corpus")
    documents = build(CORPORA, {"name": "palindromes", "documents": 20, "length": 9}, "data.corpus").load(tmp_path)
    texts = [document.text for document in documents.read(range(20))]
    assert all(text == text[::-1] and len(text) == 9 for text in texts) and len(set(texts)) > 15


def test_the_importer_of_the_example_reads_what_it_says(examples: None, tmp_path: Path) -> None:
    """A Mistral without a window is the Llama of the same weights; one with a window is refused."""
    llama, mistral = write_folder(tmp_path / "llama", "llama"), write_folder(tmp_path / "mistral", "llama")
    config = json.loads((mistral / "config.json").read_text()) | {"model_type": "mistral", "sliding_window": None}
    (mistral / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model_type 'mistral': not covered"):
        hybrid.load(mistral)
    importlib.import_module("my_importer")
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(hybrid.load(mistral).logits(tokens), hybrid.load(llama).logits(tokens))
    (mistral / "config.json").write_text(json.dumps(config | {"sliding_window": 4096}))
    with pytest.raises(ValueError, match="sliding_window 4096: not covered; every token sees all before it"):
        hybrid.load(mistral)
