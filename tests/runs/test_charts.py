"""The layout of the charts that show all runs together."""

from __future__ import annotations

import re

from hybrid.runs.charts import chart_layout


def test_each_tag_of_a_run_is_in_one_chart():
    tags = {
        "train/nelbo": 1, "val/nelbo": 1, "val/nelbo/b8": 1, "val/bits_per_byte": 1, "val_by_count/b8/n003": 1,
        "val/nelbo/b1": 1, "val/nelbo/b80": 0, "val_by_count/b80/n003": 0, "train/loss": 1, "train/ar_nll": 1,
        "perf/tokens_per_second": 1, "optim/lr": 1, "optim/muon_lr": 1, "optim/grad_norm": 1, "final/val/nelbo": 0,
    }  # fmt: skip
    patterns = [
        pattern for category in chart_layout([8, 1], True).values() for chart in category.values() for pattern in chart
    ]
    assert {tag: sum(bool(re.match(pattern, tag)) for pattern in patterns) for tag in tags} == tags
