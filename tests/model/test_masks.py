"""Who may attend to whom: the predicate against a brute-force loop, and what follows from it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import Eager
from hybrid.model.masks import TwoStream
from hybrid.model.two_stream import two_stream_hidden

CONTEXTS, PREDICTIONS = ("block_causal", "causal"), ("in_place", "next_token")


def brute_force(pattern: TwoStream, row: int = 0) -> list[list[bool]]:
    """The table, read aloud: rows are (stream, position), stream -1 is clean."""
    begin = pattern.rows.begin
    rows = [(-1, i - begin) for i in range(pattern.rows.n_clean)]
    rows += [(d, p) for d in range(pattern.rows.draws + 1) for p in range(pattern.rows.length)][: pattern.rows.n_noisy]

    def block(position: int) -> int:
        return -1 if position < 0 else position // pattern.rows.block_size

    def is_autoregressive(stream: int) -> bool:
        return stream == pattern.rows.draws  # the extra stream, where there is one

    def document(position: int) -> int:
        return 0 if pattern.documents is None else int(pattern.documents[row, position + begin])

    table = []
    for query_stream, q in rows:
        line = []
        for key_stream, k in rows:
            if query_stream < 0:
                sees = key_stream < 0 and (k <= q if pattern.context == "causal" else block(k) <= block(q))
            elif is_autoregressive(query_stream):
                sees = k < q if key_stream < 0 else (key_stream, k) == (query_stream, q)
            elif key_stream < 0:
                sees = block(k) < block(q)
            else:
                sees = key_stream == query_stream and block(k) == block(q)
            line.append(sees and document(q) == document(k))
        table.append(line)
    return table


@st.composite
def patterns(draw):
    length = draw(st.integers(1, 13))
    prediction = draw(st.sampled_from(PREDICTIONS))
    documents = None
    if draw(st.booleans()):
        steps = torch.tensor(draw(st.lists(st.integers(0, 1), min_size=length + 1, max_size=length + 1)))
        documents = steps.cumsum(0)[None, int(prediction == "in_place") :]
    context = draw(st.sampled_from(CONTEXTS))
    return TwoStream.of(
        length=length,
        block_size=draw(st.integers(1, length)),
        context=context,
        prediction=prediction,
        draws=draw(st.integers(1, 2)),
        autoregressive=context == "causal" and draw(st.booleans()),
        documents=documents,
    )


@settings(max_examples=150, deadline=None)
@given(patterns())
def test_the_predicate_is_the_table(pattern):
    assert pattern.dense()[0].tolist() == brute_force(pattern)


@settings(max_examples=80, deadline=None)
@given(patterns())
def test_read_rows_point_at_the_rows_that_predict(pattern):
    """in_place reads token l at the noisy l; next_token at the row before it, clean where that ends a block.

    Autoregressive, both read it off the clean row before it; the first of a document of in_place off a MASK alone."""
    reading = pattern.reading()
    positions, draws = reading.queries.position[0], reading.queries.draw[0]
    masked = torch.ones(1, pattern.rows.draws, pattern.rows.length, dtype=torch.bool)
    rows = pattern.rows.read_masked(masked)
    for (_, draw, position), row in zip(masked.nonzero().tolist(), rows.tolist(), strict=True):
        first = position % pattern.rows.block_size == 0
        assert positions[row] == position - pattern.rows.begin
        assert draws[row] == (-1 if pattern.rows.begin and first else draw)
    if pattern.rows.autoregressive:
        is_first = (torch.arange(pattern.rows.length) % 5 == 0)[None]
        rows = pattern.rows.read_autoregressive(masked[:, 0], is_first)
        for position, row in enumerate(rows.tolist()):
            alone = not pattern.rows.begin and position % 5 == 0
            assert positions[row] == (0 if alone else position - 1)
            assert draws[row] == (pattern.rows.draws if alone else -1)


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_ends_are_causal_and_full_attention(context):
    n = 7
    autoregressive = TwoStream.of(n, 1, context, "next_token")
    assert autoregressive.rows.n_noisy == 0, "nobody reads a noisy row"
    assert torch.equal(autoregressive.dense()[0], torch.ones(n, n).tril().bool())
    masked = TwoStream.of(n, n, context, "in_place")
    assert masked.rows.n_clean == 0, "nobody reads a clean row"
    assert masked.dense()[0].all()


def test_streams_hold_only_what_somebody_reads():
    assert TwoStream.of(8, 3).rows.n_clean == 6, "nobody attends to the clean last block"
    assert TwoStream.of(8, 8, prediction="next_token").rows.n_clean == 1, "only the begin token is read"
    reading = TwoStream.of(8, 2, prediction="next_token").reading()
    assert reading.queries.position[0, : reading.n_clean_queries].tolist() == [-1, 1, 3, 5]


@pytest.mark.parametrize("context, prediction", itertools.product(CONTEXTS, PREDICTIONS))
def test_gradients_of_unseen_inputs_are_exactly_zero(context, prediction):
    """Token l of block g, fully masked: its logits depend on the clean blocks before g and on nothing else."""
    torch.manual_seed(0)
    n, block_size = 9, 3
    model = Transformer(ModelConfig(dim=16, n_layers=3, n_heads=2, context=context, prediction=prediction), 5, 4)
    model.attend = Eager()
    tokens = torch.randint(0, 5, (1, n))
    masked = torch.ones(1, 1, n, dtype=torch.bool)
    # Each position gets an embedding of its own, so that gradients tell positions apart.
    inputs: list[torch.Tensor] = []

    def keep(module, arguments, output):
        inputs.append(output.detach().requires_grad_())
        return inputs[-1]

    model.embedding.register_forward_hook(keep)
    hidden = two_stream_hidden(model, tokens, masked, block_size)
    n_clean = TwoStream.of(n, block_size, context, prediction).rows.n_clean
    begin = int(prediction == "next_token")
    for position in range(n):
        (gradient,) = torch.autograd.grad(hidden[position].sin().sum(), inputs[0], retain_graph=True)
        moved = gradient[0, :n_clean].abs().sum(-1) > 0
        visible = begin + position // block_size * block_size
        assert moved[:visible].all(), "the whole clean prefix is used"
        assert not moved[visible:].any(), "its own block and later ones are not"


@pytest.mark.parametrize("context, prediction", itertools.product(CONTEXTS, PREDICTIONS))
def test_documents_do_not_see_each_other(context, prediction):
    """With document masking, changing one document leaves the predictions in the others bit for bit the same."""
    torch.manual_seed(0)
    end = 4
    model = Transformer(ModelConfig(dim=16, n_layers=3, n_heads=2, context=context, prediction=prediction), 5, end)
    tokens = torch.tensor([[0, 1, 2, end, 3, 0, 1, end, 2, 2, 1]])
    ends = (tokens == end).long()
    documents = ends.cumsum(1) - ends
    other = tokens.clone()
    other[0, 4:7] = torch.tensor([1, 2, 3])  # the second of three
    masked = torch.rand(1, 2, 11) < 0.5
    masked[..., 3] = masked[..., 7] = True

    def predict(ids, block_size):
        states = torch.zeros(*masked.shape, 16)
        states[masked] = two_stream_hidden(model, ids, masked, block_size, documents)
        return states

    for block_size in (1, 2, 4, 11):
        before, after = predict(tokens, block_size), predict(other, block_size)
        outside = (documents != 1)[0]
        if prediction == "next_token":
            outside = outside & ~torch.tensor([i == 7 for i in range(11)])
        assert torch.equal(before[:, :, outside], after[:, :, outside])
        assert not torch.equal(before, after)


@given(
    length=st.integers(1, 9), block_size=st.integers(1, 9), draws=st.integers(1, 2), autoregressive=st.booleans(),
    context=st.sampled_from(["block_causal", "causal"]), prediction=st.sampled_from(["in_place", "next_token"]),
    only_read=st.booleans(),
)  # fmt: skip
def test_ordinary_patterns_are_recognised(length, block_size, draws, autoregressive, context, prediction, only_read):
    """A pattern that a kernel without a mask may serve is exactly causal, or full."""
    autoregressive = autoregressive and context == "causal"
    size = min(block_size, length)
    pattern = TwoStream.of(length, size, context, prediction, draws, autoregressive=autoregressive)
    pattern = pattern.reading() if only_read else pattern
    dense = pattern.dense()[0]
    if pattern.is_causal:
        assert dense.shape[0] == dense.shape[1] and torch.equal(dense, torch.ones_like(dense).tril())
    if pattern.is_full:
        assert dense.all()


def test_which_patterns_are_ordinary():
    assert (
        TwoStream.of(8, 1, "causal", "next_token").is_causal
        and TwoStream.of(8, 1, "causal", "next_token").reading().is_causal
    )
    assert TwoStream.of(8, 8).is_full and TwoStream.of(8, 8).reading().is_full
    documents = torch.zeros(1, 8, dtype=torch.long)
    assert not TwoStream.of(8, 8, documents=documents).is_full
    assert not TwoStream.of(8, 4).is_full and not TwoStream.of(8, 8, draws=2).is_full
