"""Rows in branches see what the one predicate says, each branch a noise draw and a block of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_model

from hybrid.model.block_pass import BlockRows
from hybrid.model.branches import Branched, Branches
from hybrid.model.masks import Coordinates, may_attend

WIDTH, DRAFTED, LENGTHS, PENDING = 3, [2, 0, 1], [4, 4, 0], [3, 1, 5]  # the third is read without a cache
N_VALID = torch.tensor([[3, 3, 2], [1, 0, 0], [3, 3, 3]])


@pytest.mark.parametrize("kind", ["next_token", "in_place"])
@pytest.mark.parametrize("rows", [[0, 1, 2], [0], [2]], ids=str)
def test_it_is_the_predicate(kind: str, rows: list[int]) -> None:
    model, n = toy_model("causal", kind), 3
    cache = model.new_cache(len(rows), 40)
    masks = torch.full((len(rows), n * WIDTH), model.mask_token_id)
    forward = BlockRows(
        [LENGTHS[k] for k in rows], [torch.zeros(PENDING[k], dtype=torch.long) for k in rows], masks,
        [n * WIDTH] * len(rows),
    )  # fmt: skip
    own: Any = {"width": WIDTH, "drafted": [DRAFTED[k] for k in rows], "n_valid": N_VALID[rows]}
    pattern = Branches(1, reads_clean=True, **own).new_pattern(forward, model.config, cache)
    assert isinstance(pattern, Branched)
    dense = pattern.dense()
    for i, k in enumerate(rows):
        behind, n_pending = LENGTHS[k] + PENDING[k], forward.n_pending
        branch = torch.arange(n * WIDTH) // WIDTH
        first = behind - DRAFTED[k] + branch  # position of a branch's first MASK
        live = torch.stack([first + torch.arange(n * WIDTH) % WIDTH, first, branch])
        clean = torch.arange(behind)
        of_slots = torch.cat([torch.stack([clean, clean, torch.full_like(clean, -1)]), live], dim=1)
        is_mask = (torch.arange(n * WIDTH) % WIDTH < N_VALID[k][branch]) & (branch <= DRAFTED[k])
        is_there = torch.cat([clean >= 0, is_mask])
        asked = torch.cat([torch.arange(LENGTHS[k], behind), behind + torch.arange(n * WIDTH)])
        query, key = Coordinates(*of_slots[:, asked]), Coordinates(*of_slots)
        expected = may_attend(query.as_queries(), key.as_keys(), "causal") & is_there
        found = dense[i][[*range(PENDING[k]), *range(n_pending, n_pending + n * WIDTH)]]
        wanted = is_there[asked]
        assert torch.equal(found[wanted][:, : len(is_there)], expected[wanted])
        assert not found[wanted][:, len(is_there) :].any()
        assert torch.equal(pattern.positions[i, n_pending:], live[0])
        assert dense[i].any(-1).all(), "a softmax over nothing is no number"
