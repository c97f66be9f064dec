"""What single stages say, as far as a CPU can tell; and that the page of the documentation knows them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import hybrid
from hybrid.bench.gpu import attention, watched
from hybrid.bench.gpu.generation import cudnn_attention
from hybrid.bench.gpu.machine import head
from hybrid.bench.gpu.stage import Bench
from hybrid.bench.gpu.stages import STAGES
from hybrid.bench.gpu.watched import WaitRow
from hybrid.model import sdpa

CPU = Bench.on(torch.device("cpu"))


def test_the_page_lists_every_stage_with_its_budget() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE) == [
        (name, f"{stage.seconds:g}") for name, stage in STAGES.items()
    ]
    default = sum(stage.seconds for stage in STAGES.values())
    assert default < 420, "all of them fit"


def test_what_a_stage_needs() -> None:
    lacking = {name: reason for name, stage in STAGES.items() if (reason := stage.missing(CPU)) is not None}
    assert lacking == {"waits": "there is nothing to see on a cpu"}


def test_graphs_are_compared_with_the_same_texts_without() -> None:
    """On a CPU static forwards stand for them."""
    rows = list(STAGES["graphs"].run(CPU))
    off, on = ([row for row in rows if row.switch == f"graphs {switch}"] for switch in ("off", "on"))
    baseline = [row for row in off if row.of_autoregressive == 1]
    off = [row for row in off if row not in baseline]
    assert [(r.texts, r.variant, r.nfe) for r in off] == [(r.texts, r.variant, r.nfe) for r in on] and len(on) == 6
    assert [row.texts for row in baseline] == [1, 2]


def test_the_head_says_what_a_figure_belongs_to() -> None:
    facts = head(CPU)
    assert list(facts) == ["made by", "device", "driver", "torch", "cuDNN", "commit", "network"]
    assert facts["network"].endswith("parameters, dim 16, 1 layers, 32 ids; rows of 16 tokens, block size 4")
    assert facts["torch"].startswith(torch.__version__) and re.match(r"[0-9a-f]{7}|no commit", facts["commit"])


def test_attention_agrees_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where a pattern is taken for another: here the mask is ignored."""
    right = list(STAGES["attention"].run(CPU))
    assert len(right) == 9 and all(row.agrees for row in right)
    blind = lambda q, k, v, pattern: torch.nn.functional.scaled_dot_product_attention(q, k, v)  # noqa: E731
    monkeypatch.setattr(attention, "select_backend", lambda *_, **__: blind)
    assert [row.agrees for row in STAGES["attention"].run(CPU)] == [False] * 8 + [True], "one block sees all of itself"


def test_waits_are_told_by_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the line of the package from which torch was called, not that in torch, and not one of the benchmark."""
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)

    def set_mode(mode: str | int) -> None:
        modes.append(mode)
        warnings.warn(  # torch does so, once
            "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations",
            stacklevel=1,
        )

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(watched, "needs_card", lambda bench: None)

    def module(path: Path, text: str, **names: object) -> dict[str, object]:
        scope = {"warnings": warnings, **names}
        exec(compile(text, str(path), "exec"), scope)
        return scope

    root = Path(hybrid.__file__).parent
    item = module(root.parent / "torch.py", "def item(): warnings.warn('called a synchronizing CUDA operation')")[
        "item"
    ]
    inner = module(root / "decoding" / "x.py", "\n\ndef inner(): item(); warnings.warn('another one')", item=item)[
        "inner"
    ]
    outer = module(root / "bench" / "y.py", "def outer(): inner(); inner()", inner=inner)["outer"]
    monkeypatch.setattr(watched, "workloads", lambda bench: {"step": (2, outer), "nothing": (1, lambda: None)})
    rows = list(STAGES["waits"].run(CPU))
    assert rows == [WaitRow("step", "decoding/x.py:3", 1.0), WaitRow("nothing", "nowhere", 0.0)]
    assert modes == ["warn", 0, "warn", 0]


@pytest.mark.parametrize("allowed", [True, False])
def test_cudnn_is_allowed_where_it_is_measured(allowed: bool) -> None:
    before = sdpa.over_cache
    with cudnn_attention(allowed), sdpa.over_cache(torch.device("cuda")):
        assert torch.backends.cuda.cudnn_sdp_enabled() is allowed
    assert sdpa.over_cache is before and torch.backends.cuda.cudnn_sdp_enabled()


def test_a_step_is_counted_by_its_allowed_pairs() -> None:
    """A masked-out pair earns nothing: two streams of 4 blocks of 4 have fewer than the dense pass over them."""
    rows = {row.variant: row for row in STAGES["step"].run(CPU)}
    ours, dense = rows["block size 4"], rows["straightforward [clean; noisy]"]
    assert 0 < ours.tflops < dense.tflops
    assert ours.peak_mib is None and not ours.compiled
