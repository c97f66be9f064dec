"""The benchmark's baseline computes the same loss; its table has a row for each variant."""

import argparse

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid import bench
from hybrid.noise import Keys
from hybrid.objective import Count, masked_loss


@pytest.mark.parametrize("block_size", [1, 4, 12])
def test_the_straightforward_pass_is_the_same_loss(block_size):
    model, tokens = toy_model(), random_tokens(3, 12)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    masking = Count().draw(Keys(0, 0, torch.arange(3), 0, 3), everything, block_size, 1, True)
    ours = masked_loss(model, tokens, masking, block_size).total
    model.attend = bench.Dense()
    plain = bench.straightforward_loss(model, tokens, masking, bench.Straightforward(12, block_size))
    torch.testing.assert_close(plain.double(), ours, rtol=1e-6, atol=0)


def test_tables():
    a = argparse.Namespace(
        dim=16, layers=1, seq_len=16, rows=2, block_size=4, new_tokens=32, steps=None, repeats=1, precision="fp32",
        attention="auto", device="cpu",
    )  # fmt: skip
    lines = bench.bench_train(a).splitlines()
    assert len(lines) == 5 and lines[1].split()[-1] == "1.000"
    table = bench.bench_generate(a)
    assert "with the cache" in table and "times faster" in table
