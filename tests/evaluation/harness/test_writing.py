"""Texts that requests of lm-evaluation-harness ask for: stop strings, lengths, noise, and what is greedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import hybrid
from hybrid.decoding import DECODERS
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import GenerationState
from hybrid.decoding.sampling import Sampling
from hybrid.evaluation.harness.pieces import Piece
from hybrid.evaluation.harness.writing import NEW_TOKENS, Wanted, Writer, settled

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")
CONTEXTS = ["the value", "", "list is", "the value", "error returns the name of a"]


def writer_of(lm: hybrid.LanguageModel, most: int = 64, block_size: int = 4, decoder: Any = "first_hitting") -> Writer:
    return Writer(lm, block_size, decoder, 0, most, lm.tokenizer.encode)


def test_what_a_request_wants() -> None:
    def sampled(**options: Any) -> Sampling:
        return Wanted.of(options, 1000).sampling

    assert Wanted.of({}, 1000) == Wanted((), NEW_TOKENS, Sampling(temperature=0.0))
    assert Wanted.of({"max_new_tokens": 7, "max_gen_toks": 5, "until": "a"}, 40).new_tokens == 5
    assert Wanted.of({"until": ["a", "", "b"]}, 40) == Wanted(("a", "b"), 20, Sampling(temperature=0.0))
    assert sampled(do_sample=False, temperature=0.7) == Sampling(temperature=0.0)
    assert (
        sampled(temperature=0.7) == sampled(do_sample=True, temperature=0.7, num_beams=1) == Sampling(temperature=0.7)
    )
    assert sampled(do_sample=True, top_p=0.9) == Sampling(temperature=1.0, top_p=0.9)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"max_gen_toks": 40}, r"gen_kwargs: max_gen_toks=40 leaves no room for a prompt in the context of 40"),
        ({"max_gen_toks": 0}, r"max_gen_toks=0 .* take 1 to 39 .--gen-kwargs max_gen_toks=N."),
        ({"num_beams": 4}, r"gen_kwargs: num_beams=4 has no meaning here"),
        ({"temperature": -1}, r"temperature"),
        ({"until": 5}, r"gen_kwargs: until: 5 is an int; it must be str or list of str"),
        ({"max_gen_toks": "many"}, r"gen_kwargs: max_gen_toks='many' must be a number"),
        ({"temperature": "hot"}, r"gen_kwargs: temperature='hot' must be a number"),
    ],
)
def test_what_cannot_be_wanted(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wanted.of(asked, 40)


def long_text(lm: hybrid.LanguageModel) -> tuple[Writer, str]:
    """A writer, and the 20 characters with which it goes on behind `the value`."""
    for seed in range(50):
        writer = dataclasses.replace(writer_of(lm), seed=seed)
        (text,) = writer.texts(["the value"], [Wanted((), 20, Sampling())])
        if len(text) == 20:  # a character a token, and no end of text
            return writer, text
    raise AssertionError("every text has ended early")


def test_each_request_has_its_own_stops_and_length(lm: hybrid.LanguageModel) -> None:
    writer, whole = long_text(lm)
    stop = whole[9:11]
    asked = [Wanted((), 20, Sampling()), Wanted((), 5, Sampling()), Wanted((stop,), 20, Sampling())]
    assert writer.texts(["the value"] * 3, asked) == [whole, whole[:5], whole[: whole.index(stop)]]


def test_a_text_that_stops_is_not_written_to_its_end(lm: hybrid.LanguageModel, monkeypatch) -> None:
    states: list[GenerationState] = []
    stream = Engine.stream

    def watched(*arguments: Any) -> Iterator[GenerationState]:
        for state in stream(*arguments):
            states.append(state)
            yield state

    writer, whole = long_text(lm)
    monkeypatch.setattr(Engine, "stream", watched)
    forwards = []
    for stops in ((), (whole[1],)):
        writer.texts(["the value"], [Wanted(stops, 20, Sampling())])
        forwards.append(states[-1].nfe)
    assert forwards[1] < forwards[0] / 2


@pytest.mark.parametrize("decoder", ["first_hitting", "mask_predict", "entropy"])
def test_texts_do_not_depend_on_the_batch(lm: hybrid.LanguageModel, decoder: str) -> None:
    asked = [Wanted((stop,), 12, Sampling()) for stop in ("e", "e", "a", "e", " ")]
    expected = writer_of(lm, 64, decoder=decoder).texts(CONTEXTS, asked)
    for most in (1, 3):
        assert writer_of(lm, most, decoder=decoder).texts(CONTEXTS, asked) == expected


def test_equal_requests_draw_different_texts_whatever_the_batch(lm: hybrid.LanguageModel) -> None:
    wanted = [Wanted((), 12, Sampling())] * 3
    texts = [writer_of(lm, most).texts(["the value"] * 3, wanted) for most in (1, 3)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3
    greedy = writer_of(lm, decoder="entropy").texts(["the value"] * 2, [Wanted.of({"max_gen_toks": 12}, 32)] * 2)
    assert greedy[0] == greedy[1]


def test_a_long_context_loses_its_beginning(lm: hybrid.LanguageModel) -> None:
    """Noise is keyed by what is left of it, so another rest would give another text."""
    context, wanted = "the value of a list is set by its name", [Wanted((), 12, Sampling())]
    assert writer_of(lm).texts([context], wanted) == writer_of(lm).texts([context[-20:]], wanted)
    assert writer_of(lm).texts([context], wanted) != writer_of(lm).texts([context[-19:]], wanted)


def test_what_is_settled_is_what_no_decoder_changes_any_more(lm: hybrid.LanguageModel) -> None:
    """The tokens of the live block may still be masked again, and so may a last block that is not finished."""
    engine, mask = lm.engine(block_size=4), lm.mask_token_id
    prompt = [1, 2]

    def of(new: list[int], reason: str | None = None) -> list[int]:
        state = GenerationState(1, False, torch.tensor([prompt + new]), [(2, 2 + len(new))], [reason])
        return settled(state, [prompt], engine)[0]

    assert of([5, mask]) == of([5, 6]) == of([5, 6, mask, mask, 7, mask]) == []
    assert of([5, 6, 7, mask, mask, mask]) == of([5, 6, 7, 8, 9, 10]) == [5, 6]
    assert of([5, 6, 7], "length") == [5, 6, 7]


@pytest.mark.parametrize("most", [1, 3, 64])
def test_greedy_at_block_size_1_is_the_argmax_of_every_token(lm: hybrid.LanguageModel, most: int) -> None:
    ids = lm.tokenizer.encode("the value of")
    written = lm.generate([ids], 4, block_size=1, temperature=0.0, decoder="left_to_right").tokens[0]
    other = [(written[0] + 1) % lm.tokenizer.vocab_size, *written[1:]]
    late = [*written[:3], (written[3] + 1) % lm.tokenizer.vocab_size]
    pieces = [Piece((*ids, *new), len(ids)) for new in (written, written[:2], other, late)]
    pieces.append(Piece((3, 1), 0))
    found = writer_of(lm, most, 1).writes(pieces)
    expected = []
    for piece in pieces:
        best = lm.logits(torch.tensor([piece.ids]), 1)[0].argmax(-1)[piece.n_given :]
        expected.append(best.tolist() == list(piece.continuation))
    assert [found[piece] for piece in pieces] == expected
    assert expected[:4] == [True, True, False, False]


@pytest.mark.parametrize("decoder", ["first_hitting", "mask_predict"])
def test_greedy_is_what_temperature_0_writes(lm: hybrid.LanguageModel, decoder: str) -> None:
    ids = lm.tokenizer.encode("the value")
    config = {"block_size": 4, "temperature": 0.0, "decoder": DECODERS[decoder](), "stop_at_end": False}
    written = lm.generate([ids], 9, **config).tokens[0]
    late = [*written[:8], (written[8] + 1) % lm.tokenizer.vocab_size]
    pieces = [Piece((*ids, *new), len(ids)) for new in (written, written[:3], late)]
    assert list(writer_of(lm, decoder=decoder).writes(pieces).values()) == [True, True, False]
    full = Piece(tuple([*ids, *written] * 2)[:32], 31)  # beside it no more than one token fits
    assert writer_of(lm, decoder=decoder).writes([full, pieces[0]])[pieces[0]]
