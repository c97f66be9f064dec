"""The unmasking schedule: how many positions a step reveals."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.decoding.unmasking import UnmaskingSchedule


def test_steps_spread_a_block_evenly():
    masked = torch.tensor([[1] * 10, [1] * 7 + [0] * 3, [1] * 2 + [0] * 8]).bool()
    assert UnmaskingSchedule(4).counts(masked).tolist() == [[3, 3, 2, 2], [2, 2, 2, 1], [1, 1, 0, 0]]
    assert UnmaskingSchedule(None).counts(masked).sum(1).tolist() == [10, 7, 2]
    assert UnmaskingSchedule(per_step=4).counts(masked).tolist() == [[4, 4, 2], [4, 3, 0], [2, 0, 0]]
    assert (UnmaskingSchedule().counts(masked) <= 1).all()


def test_the_cosine_schedule_is_that_of_maskgit():
    """After step i of T, floor(L cos(pi/2 i/T)) are masked: 16, 14.8, 11.3, 6.1, 0 for L = 16, T = 4."""
    sixteen = torch.ones(1, 16, dtype=torch.bool)
    assert UnmaskingSchedule(4, plan="cosine").counts(sixteen).tolist() == [[2, 3, 5, 6]]
    assert UnmaskingSchedule(3, plan="cosine").counts(sixteen[:, :4]).tolist() == [[1, 1, 2]]
    assert UnmaskingSchedule(9, plan="cosine").counts(sixteen[:, :4]).tolist() == [[1, 1, 1, 1]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 50), st.sampled_from(["linear", "cosine"]))
def test_every_schedule_reveals_all_in_its_steps_and_one_at_each(sizes, steps, plan):
    is_masked = torch.arange(40) < torch.tensor(sizes)[:, None]
    shares = UnmaskingSchedule(steps, plan=plan).counts(is_masked)
    assert shares.sum(1).tolist() == sizes
    for share, n in zip(shares.tolist(), sizes, strict=True):
        assert [s > 0 for s in share] == [i < min(n, steps) for i in range(len(share))]
    assert shares.shape[1] == max(1, min(steps, max(sizes)))
