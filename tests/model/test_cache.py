"""The cache can be cut back to a length per row, and is then what a fresh prefill gives."""

from __future__ import annotations

import pytest
import torch
from toy import MODES, PREDICTIONS, random_tokens, toy_model

from hybrid.model.attention import Eager
from hybrid.model.block_pass import BlockRows, Sight, block_hidden
from hybrid.model.two_stream import with_begin


def step(model, cache, pending, live, sight):
    rows = BlockRows(cache.lengths, pending, live, [live.shape[1]] * len(live))
    with torch.no_grad():
        return block_hidden(model, cache, rows, Sight(sight) if isinstance(sight, int) else sight)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 3])
def test_a_cut_cache_equals_a_fresh_prefill(mode, block_size) -> None:
    """Rows cut by different lengths, one not at all; what follows is another text than before the cut."""
    model = toy_model(*mode)
    begin, n = model.config.begin, 12
    old, new = random_tokens(3, n, seed=0), random_tokens(3, n, seed=1)
    kept = [3, 6, 9]  # text tokens that stay
    text = torch.stack([torch.cat([o[:k], w[k:]]) for o, w, k in zip(old, new, kept, strict=True)])
    live = torch.full((3, block_size), model.mask_token_id)

    cache = model.new_cache(3, begin + n + block_size)
    step(model, cache, list(with_begin(model, old)[:, : begin + 9]), live, block_size)
    back = block_size if begin else 0  # the last token is read again, with its block
    lengths = [begin + k - (back if k < 9 else 0) for k in kept]
    cache.cut(lengths)
    assert cache.lengths == lengths
    pending = [with_begin(model, text)[r, length : begin + n] for r, length in enumerate(lengths)]
    got = step(model, cache, pending, live, block_size)

    fresh = model.new_cache(3, begin + n + block_size)
    expected = step(model, fresh, list(with_begin(model, text)[:, : begin + n]), live, block_size)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for ours, theirs in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
        torch.testing.assert_close(ours[:, :, : begin + n], theirs[:, :, : begin + n], rtol=0, atol=1e-12)


def test_a_cut_that_is_no_cut_is_refused() -> None:
    model = toy_model()
    cache = model.new_cache(2, 8)
    cache.commit([4, 2])
    for lengths, row in (([5, 2], 0), ([4, -1], 1)):
        with pytest.raises(ValueError, match=f"row {row} holds"):
            cache.cut(lengths)
    assert cache.lengths == [4, 2]


@pytest.mark.parametrize("rows", [[0, 2, 3], [1], [0, 1], [3], [0, 1, 2, 3]])
def test_rows_that_leave_make_room_in_the_same_memory(rows) -> None:
    cache = toy_model().new_cache(4, 8)
    cache.commit([4, 2, 3, 8])
    for t in (cache.keys, cache.values, cache.last_hidden):
        t.normal_()
    tensors = cache.keys, cache.values, cache.last_hidden
    before, addresses = [t.clone() for t in tensors], [t.data_ptr() for t in tensors]
    cache.keep(rows)
    assert [t.data_ptr() for t in (cache.keys, cache.values, cache.last_hidden)] == addresses
    assert cache.lengths == [[4, 2, 3, 8][row] for row in rows] and cache.keys.shape[1] == len(rows)
    for now, row in enumerate(rows):
        assert torch.equal(cache.last_hidden[now], before[2][row])
        for t, old in zip((cache.keys, cache.values), before, strict=False):
            assert torch.equal(t[:, now, : cache.lengths[now]], old[:, row, : cache.lengths[now]])


def test_a_token_read_off_a_state_that_was_cut_is_not_made_up() -> None:
    """`next_token` predicts from the last committed state; after a cut there is none until it is read again."""
    model = toy_model("causal", "next_token")
    cache = model.new_cache(1, 8)
    live = torch.full((1, 2), model.mask_token_id)
    step(model, cache, [torch.tensor([6, 1, 2, 3, 4])], live, 2)
    cache.cut([3])
    with pytest.raises(AssertionError, match="read again"):
        step(model, cache, [torch.tensor([], dtype=torch.long)], live, 2)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_padding_is_finite(mode) -> None:
    """Rows behind a short live block and pending tokens that a text lacks: nobody reads them, and no NaN is made."""
    model = toy_model(*mode)
    model.attend = Eager()  # whose softmax of nothing is NaN
    cache = model.new_cache(2, model.config.begin + 8)
    pending = [with_begin(model, random_tokens(1, n))[0] for n in (0, 4)]
    rows = BlockRows(cache.lengths, pending, torch.full((2, 4), model.mask_token_id), [4, 2])
    with torch.no_grad():
        assert block_hidden(model, cache, rows, Sight(4)).isfinite().all()
    assert cache.keys.isfinite().all() and cache.values.isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_causal_cache_may_be_cut_inside_of_a_block_also_under_a_window(prediction) -> None:
    """What a window reaches back to is counted from the start of the block, wherever the cut is."""
    model = toy_model("causal", prediction)
    begin, sight = model.config.begin, Sight(4, window=8)
    old, new = random_tokens(1, 12), random_tokens(1, 12, seed=1)
    live = torch.full((1, 4), model.mask_token_id)
    for kept in range(12):
        text = with_begin(model, torch.cat([old[:, :kept], new[:, kept:]], dim=1))
        hidden = []
        for cut in (True, False):
            cache = model.new_cache(1, begin + 16)
            if cut:
                step(model, cache, list(with_begin(model, old)), live, sight)
                cache.cut([kept])
            hidden.append(step(model, cache, [text[0, cache.lengths[0] :]], live, sight))
        torch.testing.assert_close(*hidden, rtol=0, atol=1e-12)


def test_rows_that_are_kept_bring_all_that_is_theirs() -> None:
    """Also the state that a live block is read off when nothing is pending."""
    model = toy_model("causal", "next_token")
    text = list(with_begin(model, random_tokens(3, 8)))
    nothing = torch.tensor([], dtype=torch.long)
    live = torch.full((3, 2), model.mask_token_id)
    caches = [model.new_cache(rows, 11) for rows in (3, 2)]
    step(model, caches[0], text, live, 2)
    step(model, caches[1], [text[2], text[0]], live[:2], 2)
    caches[0].cut([9, 5, 9])
    caches[0].keep([2, 0])
    assert caches[0].lengths == [9, 9] and caches[0].has_last == [True, True]
    got, expected = (step(model, cache, [nothing] * 2, live[:2], 2) for cache in caches)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    caches[0].cut([5, 9])
    caches[0].keep([0])
    assert caches[0].lengths == [5] and caches[0].has_last == [False]
