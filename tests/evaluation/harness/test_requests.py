"""Requests of lm-evaluation-harness as rows: where a context ends, what fits, and what is scored together."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command

import hybrid
from hybrid.data.tokenizers.subword import SubwordTokenizer
from hybrid.evaluation.harness.mistakes import mistakes_of_tasks
from hybrid.evaluation.harness.pieces import Piece, batches, encode_pair, fitted, refuse_several
from hybrid.evaluation.harness.scoring import Estimator, Score, errors_of

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")


def pieces_of(lm: hybrid.LanguageModel, n: int = 12) -> list[Piece]:
    """Of several lengths, some equal, some of equal tokens with another border."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        ids = torch.randint(0, lm.tokenizer.vocab_size, (5 + i % 3,), generator=draw).tolist()
        found.append(Piece(tuple(ids), i % 4))
    return [*found, found[0], Piece(found[1].ids, 3), Piece(found[2].ids, 0), Piece(found[2].ids, 1)]


def test_a_context_and_its_continuation_are_one_text_that_is_divided() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    assert encode_pair(encode, "ab", " cd") == (encode("ab"), encode(" cd"))
    assert encode_pair(encode, "ab  ", "cd") == (encode("ab"), encode("  cd"))
    assert encode_pair(encode, "", "cd") == ([], encode("cd"))
    assert encode_pair(encode, " ", "cd") == (encode(" "), encode("cd"))


def test_a_token_that_crosses_the_border_is_not_split_in_the_wrong_place() -> None:
    tokenizer = SubwordTokenizer.train(["the list of the list"] * 50, 300)
    whole = tokenizer.encode("the list")
    assert len(whole) < len(tokenizer.encode("the li")) + 2  # so `st` has no tokens of its own there
    before, after = encode_pair(tokenizer.encode, "the li", "st")
    assert tokenizer.decode([*before, *after]) == "the list"
    assert tokenizer.decode(before) == "the li" and after


def test_a_long_context_loses_its_beginning() -> None:
    assert fitted([1, 2, 3, 4], [5, 6], 4, "x") == Piece((3, 4, 5, 6), 2)
    assert fitted([1, 2], [5, 6, 7], 3, "x") == Piece((5, 6, 7), 0)
    assert fitted([], [5], 3, "x") == Piece((5,), 0)
    with pytest.raises(ValueError, match=r"the continuation 'x' has 4 tokens and the context 3 .data\.seq_len"):
        fitted([1], [5, 6, 7, 8], 3, "x")
    with pytest.raises(ValueError, match=r"tasks: the continuation '' has no token"):
        fitted([1], [], 3, "")
    with pytest.raises(ValueError, match=r"tasks: \['a'\] is a list; let doc_to_text and doc_to_target give one"):
        refuse_several(("a", ["a"]))
    refuse_several(("a", "b"))


def test_what_is_scored_together_is_equally_long_and_different(lm: hybrid.LanguageModel) -> None:
    distinct = list(dict.fromkeys(pieces_of(lm)))
    for most in (1, 3, 64):
        found = list(batches(distinct, most))
        assert sorted(number for batch in found for number in batch) == list(range(len(distinct)))
        for batch in found:
            rows = [distinct[number].ids for number in batch]
            assert len(batch) <= most and len({len(row) for row in rows}) == 1 and len(set(rows)) == len(rows)


@pytest.mark.parametrize("decoder", [None, "entropy"], ids=["bound", "policy"])
@pytest.mark.parametrize("block_size", [1, 4])
def test_scores_do_not_depend_on_the_batch(lm: hybrid.LanguageModel, block_size: int, decoder: str | None) -> None:
    estimator = Estimator.choose(lm, block_size, decoder, draws=3, seed=1)
    pieces = pieces_of(lm)
    alone = [estimator.score([piece], 1)[0] for piece in pieces]
    for most in (1, 9, 64):  # 9 rows are 3 pieces of 3 draws
        for expected, found in zip(alone, estimator.score(pieces, most), strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert len({score.log_p for score in alone}) == len(set(pieces))


def test_it_is_the_likelihood_that_lm_nll_gives(lm: hybrid.LanguageModel) -> None:
    ids = torch.arange(7)[None] % lm.tokenizer.vocab_size
    is_target = torch.arange(7)[None] >= 3
    piece = Piece(tuple(ids[0].tolist()), 3)
    for size, decoder, method in (
        (1, None, "exact"),
        (4, None, "bound"),
        (4, "entropy", "policy"),
        (1, "entropy", "exact"),
    ):
        estimator = Estimator.choose(lm, size, decoder, 5, 2)
        assert estimator.method == estimator.about["estimator"] == method
        options = {"decoder": decoder} if method == "policy" else {}
        expected = lm.nll(ids, size, method, draws=5, seed=2, is_target=is_target, **options)
        (found,) = estimator.score([piece])
        assert found == pytest.approx((-float(expected.nll), float(expected.stderr), 4))
    enumerated = Estimator.choose(lm, 4, None, "all", 0).score([piece])[0]
    assert enumerated.stderr == 0
    assert enumerated.log_p == pytest.approx(-float(lm.nll(ids, 4, draws="all", is_target=is_target).nll))


def test_a_decoder_of_random_order_has_the_bound(lm: hybrid.LanguageModel) -> None:
    assert Estimator.choose(lm, 4, "first_hitting", 3, 0).method == "bound"
    with pytest.raises(ValueError, match=r"decoder: .*did you mean 'entropy'"):
        Estimator.choose(lm, 1, "entropi", 3, 0)
    with pytest.raises(ValueError, match="draws: 0"):
        Estimator.choose(lm, 4, None, 0, 0)


def test_errors_of_a_task_are_of_a_request_and_of_the_mean_token() -> None:
    scores = [Score(-3.0, 0.3, 2), Score(-5.0, 0.4, 3)]
    assert Score.sum(scores) == (-8.0, pytest.approx(0.5), 5)
    assert Score.sum([]) == (0, 0, 0)
    found = errors_of({"mine": scores})["mine"]
    assert found == {
        "requests": 2, "tokens": 5,
        "stderr_per_request": pytest.approx(0.5 / math.sqrt(2)), "stderr_per_token": pytest.approx(0.1),
    }  # fmt: skip


def test_without_the_harness_the_command_says_how_to_install_it(
    command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    error = command("lm_eval", "--checkpoint", trained, "--tasks", "mine.yaml").error
    assert error == "error: lm-eval is not installed; pip install 'hybrid[lm-eval]'"


def test_several_processes_are_refused(command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = command("lm_eval", "--checkpoint", trained, "--tasks", "mine.yaml").error
    assert error.endswith("it runs in one process, not in 2; start it without torchrun")


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    """Only what is raised in the harness itself is a mistake of the task."""
    with pytest.raises(AttributeError), mistakes_of_tasks():
        Piece.context.__get__(object())  # no Piece
