"""Prompts with gaps: the law of what fills them, in every decoder, and how a gap is typed."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import Command
from decoding_toy import BLOCK_DECODERS, all_texts, chi_square_alarm, context_of, engine
from toy import MODES, nll_of, toy_model

import hybrid
from hybrid.data.tokenizers import ByteTokenizer, CharTokenizer, SubwordTokenizer
from hybrid.decoding import denoiser
from hybrid.decoding.prompts import infilling_size
from hybrid.text.infill import gaps_of, ids_with_gaps

LAW = [("first_hitting", mode) for mode in MODES] + [("ancestral", MODES[0])]


@pytest.mark.thin(2)
@pytest.mark.parametrize("decoder, mode", LAW, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_a_gap_is_filled_with_a_view_of_both_sides(decoder: str, mode: tuple[str, str]) -> None:
    """Two tokens between given ones, in the second block: chi-square of 6,000 fillings against the any-order law given
    all that is known, by enumeration. False alarm below 1e-5 a case; what ignores the right side is found out."""
    model = toy_model(*mode, vocab=3)
    M, (left, right) = model.mask_token_id, ([2, 0, 1, 1, 0], [0])
    texts = torch.cat([torch.tensor(left).expand(9, 5), all_texts(3, 2), torch.tensor(right).expand(9, 1)], dim=1)
    is_target = torch.tensor([False] * 5 + [True] * 2 + [False]).expand(9, 8)
    with torch.no_grad():
        law = (-nll_of(model, texts, 4, "enumerate", is_target=is_target).nll).exp()
        blind = (-nll_of(model, texts[:, :7], 4, "enumerate", is_target=is_target[:, :7]).nll).exp()
    assert float(law.sum()) == pytest.approx(1)
    run = engine(model, 4, decoder if decoder != "ancestral" else {"name": "ancestral", "steps": 100_000}, seq_len=8)
    filled = torch.tensor(run.generate([[*left, M, M, *right]] * 6000, 0).sequences)
    assert filled[:, :5].unique(dim=0).tolist() == [left] and filled[:, 7:].unique(dim=0).tolist() == [right]
    counts = torch.bincount(filled[:, 5] * 3 + filled[:, 6], minlength=9)
    assert chi_square_alarm(counts, law) > 1e-5
    assert chi_square_alarm(counts, blind) < 1e-5


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", sorted(BLOCK_DECODERS))
def test_every_decoder_fills_gaps_and_leaves_what_is_given(name: str) -> None:
    """Alone and in a batch beside a prompt without a gap, cached and not; with new tokens behind and without."""
    model = toy_model(context_of(name), vocab=9, dtype=torch.float32)
    M = model.mask_token_id
    prompts = [[1, M, M, 5], [7, 7], [3, 1, 2, 8, M, 2, M, 4], [], [4, 4, 4, M, M, M]]
    for size, new in itertools.product((4, 14), (0, 5)):
        options = {"seed": 3, "guidance": 0.5}
        batch = engine(model, size, name, **options).generate(prompts, new)
        assert batch.sequences == engine(model, size, name, cache=False, **options).generate(prompts, new).sequences
        for prompt, whole, tokens in zip(prompts, batch.sequences, batch.tokens, strict=True):
            assert all(b < 9 and a in (M, b) for a, b in zip(prompt, whole, strict=False))
            assert whole[len(prompt) :] == tokens and len(tokens) <= new
            assert engine(model, size, name, **options).generate([prompt], new).sequences == [whole]


def test_what_a_decoder_sees_of_a_gap() -> None:
    seen = []

    class All:
        def start(self, view):
            return None

        def select(self, view, state):
            seen.append(view)
            return view.is_masked, torch.ones_like(view.is_masked) if view.step == 0 else None

    M = toy_model().mask_token_id
    whole = engine(toy_model(), 6, All()).generate([[1, M, 3, M, 5]], 0).sequences[0]
    assert [view.is_fixed[0].tolist() for view in seen] == [[True, False, True, False, True, False]] * 2
    assert [view.is_masked[0].tolist() for view in seen] == [[False, True, False, True, False, False]] * 2, (
        "nothing is asked for behind the prompt"
    )
    assert (whole[0], whole[2], whole[4]) == (1, 3, 5) and M not in whole


@pytest.mark.parametrize("name", sorted(BLOCK_DECODERS))
def test_nothing_is_written_behind_a_prompt_where_nothing_is_asked_for(name: str) -> None:
    """Two tokens of a block of 12 cost two forwards, in whatever company; what stands behind them is seen as MASK."""
    model = toy_model(context_of(name), vocab=9)
    M = model.mask_token_id
    few = engine(model, 12, name, seed=1).generate([[1, M, M, 5], [2, 2], [1, M, 4]], 0)
    rounds = {"mask_predict": 10, "p2": 16, "remdm": 32, "arpc": 8, "copula": 8}.get(name, 2)
    assert few.nfe <= rounds and (name != "left_to_right" or few.nfe == 2)
    assert few.tokens == [[]] * 3 and few.finish_reasons == ["length"] * 3
    assert [len(row) for row in few.sequences] == [4, 2, 3]
    assert not any(M in row for row in few.sequences)


def test_without_the_prompt_a_filled_gap_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What guidance compares with reads given tokens as MASK, and what was written in between as it is."""
    model = toy_model()
    M, committed = model.mask_token_id, []
    block_hidden = denoiser.block_hidden

    def spy(model, cache, rows, *args):
        committed.append(rows.pending[0].tolist())
        return block_hidden(model, cache, rows, *args)

    monkeypatch.setattr(denoiser, "block_hidden", spy)
    run = engine(model, 4, "left_to_right", guidance=1.0, stop_at_end=False)
    whole = run.generate([[1, M, M, 5]], 3).sequences[0]
    assert [tokens for tokens in committed if tokens] == [[M, whole[1], whole[2], M], whole[:4]]


def test_an_end_of_text_in_a_gap_ends_nothing_and_one_behind_it_does() -> None:
    model = toy_model()
    M, end = model.mask_token_id, model.end_of_text
    run = engine(model, 4, "left_to_right")
    for seed in range(40):
        result = engine(model, 4, "left_to_right", seed=seed).generate([[1, M, 2]], 5)
        if result.sequences[0][1] == end:
            break
    else:
        pytest.fail("no end of text was drawn in 40 gaps")
    assert result.sequences[0][2] == 2 and len(result.tokens[0]) >= 1
    assert run.generate([[1, M, 2]], 0).finish_reasons == ["length"]


def test_a_gap_that_would_not_see_what_follows_is_refused_with_a_size_that_would_do() -> None:
    M = 7
    prompt = [1, 2, 3, M, 4]
    assert infilling_size([prompt], M, "in_place", [2, 4, 8], 14) == 8
    assert infilling_size([[1, M, M], [1]], M, "in_place", [1], 14) == 1  # nothing is given behind it
    with pytest.raises(
        ValueError, match=r"with 4, the gap at token 3 of prompt 1 .* up to token 4.*block_size=3 would"
    ):
        infilling_size([[], prompt], M, "in_place", [4], 14)
    with pytest.raises(ValueError, match=r"with 4 or 1, .* block_size=8 would do$"):
        infilling_size([prompt], M, "in_place", [4, 1], 14, others=[4, 1, 8])
    with pytest.raises(ValueError, match=r"block_size=3 would do \(it was not trained\)"):
        infilling_size([prompt], M, "in_place", [4], 14, others=[4])
    # The first token of a block of next_token is read off the block before.
    with pytest.raises(ValueError, match="block_size=5 would do"):
        infilling_size([prompt], M, "next_token", [3], 14)
    with pytest.raises(ValueError, match="no block size would do: give fewer tokens behind the gap, or some before it"):
        infilling_size([[M, 1]], M, "next_token", [4], 14)
    with pytest.raises(ValueError, match="the gap at token 3 of prompt 0"):
        engine(toy_model(), 4).generate([prompt], 3)


def test_of_the_trained_sizes_the_first_that_fits_is_taken(lm: hybrid.LanguageModel) -> None:
    """4, then 1; no other is tried without being asked for."""
    M = lm.mask_token_id
    assert lm.generate([[1, M, 2]], 0, seed=1).sequences == lm.generate([[1, M, 2]], 0, 4, seed=1).sequences
    with pytest.raises(ValueError, match=r"with 4 or 1, the gap .* block_size=3 would do \(it was not trained\)"):
        lm.generate([[1, 1, 1, M, 2]], 0)
    with pytest.raises(ValueError, match=r"with 1, the gap .* block_size=4 would do$"):
        lm.generate([[1, M, 2]], 0, block_size=1)
    *_, last = lm.stream([[1, M, 2]], 0, seed=1)
    assert last.sequences == lm.generate([[1, M, 2]], 0, seed=1).sequences and last.tokens == [[]]


# ---------------------------------------------------------------------------------------------------------------------
# As it is typed


def test_how_a_gap_is_typed() -> None:
    def ids(text: str) -> list[int]:
        return ids_with_gaps(text, ByteTokenizer(), 999, 50)

    gap = [999]
    assert ids("a<gap:2>b<gap:1>") == [*b"a", *gap * 2, *b"b", *gap]
    assert ids("<gap:03>") == gap * 3
    assert ids(r"\<gap:2> <gap:1>") == [*b"<gap:2> ", *gap]
    assert ids(r"\\<gap:1>") == [*b"\\", *gap]
    assert ids(r"\\\<gap:1><gap:1>") == [*b"\\<gap:1>", *gap]
    assert ids(r"\n\\ <gap 2> <gap:1>") == [*rb"\n\\ <gap 2> ", *gap]
    assert gaps_of(ids("a<gap:2>b<gap:1>"), 999) == [(1, 3), (4, 5)]
    for text in ("<gap:0>", "<gap:>", "<gap:x>", "<gap:-1>", "<gap:51>", f"<gap:{'9' * 5000}>"):
        with pytest.raises(ValueError, match=r"--infill: '<gap:.* is no gap of 1 to 50 tokens") as error:
            ids(text)
        assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match="--infill: the prompt has no gap"):
        ids(r"a \<gap:3>")


def test_what_is_behind_a_gap_goes_on() -> None:
    """Tokenizers that begin every text with a blank, or know words by their start, do not do so behind a gap."""
    letters = list("aefhoqtux0.")
    unigram = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((piece, -2.0) for piece in ["▁", *letters])], 0)
    )
    unigram.pre_tokenizer, unigram.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    words = ["[UNK]", "[SEP]", "the", "fox", *letters, *(f"##{letter}" for letter in letters)]
    wordpiece = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = tokenizers.decoders.WordPiece()
    for tokenizer in map(SubwordTokenizer, (unigram, wordpiece)):
        for text in ("the<gap:1>ox fox", "the <gap:1>ox", "<gap:1> fox", "the<gap:1> fox<gap:1>"):
            ids = ids_with_gaps(text, tokenizer, -1, 5)
            filled = tokenizer.decode([tokenizer.encode("q")[-1] if i == -1 else i for i in ids])
            wanted = text.replace("the <", "the<").replace("<gap:1>", "q")  # a lone token of WordPiece may be a word
            assert filled.replace(" q", "q") == wanted, (text, filled)
    characters = CharTokenizer("xyz")  # without any of the anchors
    assert ids_with_gaps("x<gap:1>yz", characters, -1, 5) == [0, -1, 1, 2]


def test_infilling_on_the_command_line(command: Command, trained: Path, tmp_path: Path) -> None:
    lm = hybrid.load(trained)
    M = lm.mask_token_id
    words = ["--checkpoint", trained, "--seed", 2, "--infill", "--prompt", "the <gap:2>l"]
    ids = [*lm.tokenizer.encode("the "), M, M, *lm.tokenizer.encode("l")]
    whole = lm.generate([ids], 0, seed=2, decoder=lm.config.decoder).sequences[0]
    done = command("generate.py", *words)
    assert done.code == 0 and done.out == f"{lm.tokenizer.decode(whole)}\n" and "2 tokens in" in done.err
    page = tmp_path / "page.html"
    told = json.loads(command("generate.py", *words, "--json", "--num-samples", 2, "--trace", page).out)
    assert told["prompt"] == "the <gap:2>l" and told["texts"][0] == lm.tokenizer.decode(whole)
    assert [[text[4:6]] for text in told["texts"]] == told["filled"] and told["tokens"] == 4
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)[0])
    assert data["texts"][0]["prompt"] == [-1 if token == M else token for token in ids]
    assert sorted(position for _, revealed, _ in data["texts"][0]["steps"] for position, _, _ in revealed)[:2] == [4, 5]
    longer = json.loads(command("generate.py", *words, "--json", "--max-new-tokens", 3, "--ignore-end-of-text").out)
    assert longer["tokens"] == 5 and len(longer["texts"][0]) == 10 and longer["finish_reasons"] == ["length"]
    assert "block_size" in command("generate.py", *words, "--block-size", 1).error


def test_a_size_that_was_not_trained_is_said_once(trained) -> None:
    lm = hybrid.load(trained)
    with pytest.warns(UserWarning, match="block_size: 8 was not trained") as said:
        lm.generate([[1, lm.mask_token_id, 2]], 2, block_size=8)
    assert len(said) == 1
