"""The two ways to run the network agree: whole rows in two streams, and block by block over a cache."""

import pytest
import torch
import torch.nn.functional as F
from cached_pass import cached_hidden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from toy import MODES, random_tokens, toy_model

from hybrid.model.attention import Eager
from hybrid.model.two_stream import two_stream_hidden


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODES),
    st.integers(1, 13),
    st.integers(1, 13),
    st.sampled_from(["eager", "sdpa"]),
    st.integers(0, 99),
)
def test_cached_blocks_equal_the_training_pass(mode, length, block_size, backend, seed):
    """Ragged rows, short last blocks, both contexts and predictions, fused commits: to 1e-12 in float64."""
    block_size = min(block_size, length)
    model = toy_model(*mode, seed=seed)
    if backend == "eager":
        model.attend = Eager()
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(3, length, seed=seed)
    masked = torch.rand(3, length, generator=generator) < 0.6
    starts = torch.randint(0, -(-length // block_size), (3,), generator=generator).tolist()
    expected = torch.full((3, length, model.config.dim), torch.nan, dtype=torch.float64)
    with torch.no_grad():
        expected[masked] = two_stream_hidden(model, tokens, masked[:, None], block_size)
        got = cached_hidden(model, tokens, masked, block_size, starts)
    for row in range(3):
        compared = masked[row].clone()
        compared[: starts[row] * block_size] = False
        torch.testing.assert_close(got[row, compared], expected[row, compared], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_several_draws_share_the_clean_pass(mode):
    """Each draw gives what it gives alone."""
    model = toy_model(*mode)
    tokens = random_tokens(2, 11)
    masked = torch.rand(2, 3, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    together = torch.zeros(*masked.shape, 16, dtype=torch.float64)
    together[masked] = two_stream_hidden(model, tokens, masked, 4)
    for i in range(3):
        one = masked[:, i : i + 1]
        torch.testing.assert_close(
            together[:, i][one[:, 0]], two_stream_hidden(model, tokens, one, 4), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_canvas_is_what_the_noisy_streams_read(mode):
    """A block of other tokens, after the blocks of the text: as in the text that has both."""
    model = toy_model(*mode)
    tokens, others = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    masked = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    canvas = others[:, None].expand(masked.shape).masked_fill(masked, model.mask_token_id)
    got = two_stream_hidden(model, tokens, masked, 4, canvas=canvas)
    of_block = masked.nonzero()[:, 2] // 4
    for block in range(3):
        text = torch.cat([tokens[:, : 4 * block], others[:, 4 * block :]], dim=1)
        expected = two_stream_hidden(model, text, masked, 4)
        torch.testing.assert_close(got[of_block == block], expected[of_block == block])


@pytest.mark.parametrize("mode", MODES)
def test_the_last_layer_computes_only_what_is_read(mode):
    """Rows that reach the last layer's SwiGLU are the masked tokens, no more; the clean stream has none in place."""
    model = toy_model(*mode)
    seen = []
    model.layers[-1].w_down.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    masked = torch.rand(2, 1, 12, generator=torch.Generator().manual_seed(0)) < 0.3
    two_stream_hidden(model, random_tokens(2, 12), masked, 4)
    assert seen == [int(masked.sum())]


class Calls(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
def test_the_backward_pass_sorts_no_indices(mode):
    """Rows that are read add their gradients; what indexing has as its backward sorts the indices on a GPU."""
    model = toy_model(*mode)
    masked = torch.rand(2, 2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden = two_stream_hidden(model, random_tokens(2, 12), masked, 4)
    with Calls() as calls:
        hidden.sum().backward()
    assert "aten::index_add_" in calls.names or "aten::index_add" in calls.names
    assert not {name for name in calls.names if "index_put" in name}


@pytest.mark.parametrize("mode", MODES)
def test_documents_in_the_cache(mode):
    """A prompt of two documents: the live block sees the last one only, as in training."""
    model = toy_model(*mode)
    end = model.end_of_text
    tokens = torch.tensor([[0, 1, 2, end, 3, 0, 1, 2, 3, 1, 0, 2]])
    ends = (tokens == end).long()
    exclusive = ends.cumsum(1) - ends
    masked = torch.zeros(1, 12, dtype=torch.bool)
    masked[:, 8:] = True
    slots = exclusive
    if mode[1] == "next_token":
        slots = F.pad(exclusive + ends, (1, 0))
    expected = two_stream_hidden(model, tokens, masked[:, None], 4, exclusive)
    got = cached_hidden(model, tokens, masked, 4, [2], slots)[masked]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    plain = cached_hidden(model, tokens, masked, 4, [2])[masked]
    assert (plain - expected).abs().max() > 1e-3, "the first document would have mattered"
