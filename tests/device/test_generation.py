"""Generation on a GPU: devices never mix, the texts are those of a CPU, and the host waits only where a table says."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
from generation_settings import SETTINGS, texts
from pretended_device import PretendedGPU, pretended_gpu
from toy import MODES, toy_model

from hybrid.decoding.step import Step

WAITS = {
    # once a generation
    ("model/fused.py", "_state"): "sums of the weights say whether they have changed since they were fused",
    ("decoding/results.py", "GenerationState.tokens"): "the texts are read",
    ("decoding/results.py", "GenerationState.sequences"): "the texts are read",
    # once a block
    ("decoding/block_loop.py", "BlockLoop._advance"): "an end of text ends a text",
    ("decoding/unmasking.py", "UnmaskingSchedule.counts"): "how many steps the block takes",
    ("decoding/decoder.py", "step_sizes"): "what each of them reveals",
    # once a step, of decoders that look at the text to decide how much they reveal, or take back
    ("decoding/step.py", "Step.decide"): "how much is revealed, and masked after it",
    ("decoding/remasking.py", "PathPlanning.select"): "whether anything is to be revealed at all",
    ("decoding/remasking.py", "ReMDM.select"): "likewise",
    ("decoding/places.py", "Places.index"): "how many positions a decoder of one's own reads",
}
"""Where the host may wait: (file, function), and for what."""

FIXED = [
    "first_hitting",
    "ancestral",
    "left_to_right",
    "random",
    "confidence",
    "margin",
    "entropy",
    "many_a_step",
    "guidance",
    "uncached",
    "documents",
    "sliding",
    "truncated",
    "greedy",
    "gumbel",
    "autoregressive",
    "infilling",
]
"""Settings in which the host knows when a block starts how many tokens each step reveals."""

TWICE = {"confident_remdm", "no_remasking", "own_draws"}
"""Settings whose decoder asks something itself, at each step or fewer."""


def on_both(mode: tuple[str, str], setting: dict[str, Any]) -> PretendedGPU:
    """Generate on a CPU and on a pretended GPU; the texts must be the same."""
    model, planner = (toy_model(*mode, vocab=9, seed=seed, n_layers=1) for seed in (0, 1))
    expected = texts(copy.deepcopy(model), planner, **setting)
    with pretended_gpu() as gpu:
        assert texts(model.to("cuda"), planner.to("cuda"), **{"graphs": False, **setting}) == expected
    return gpu


@pytest.mark.thin(14)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_texts_are_those_of_a_cpu_and_the_host_waits_only_where_it_may(
    setting: dict[str, Any], mode: tuple[str, str]
) -> None:
    assert on_both(mode, setting).places() - WAITS.keys() == set()


@pytest.mark.thin(6)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_host_waits_once_a_block_or_once_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    decide = Step.decide
    monkeypatch.setattr(Step, "decide", lambda self, *args: steps.append(1) or decide(self, *args))
    gpu = on_both(("causal", "next_token"), SETTINGS[name])
    n_steps, waits = len(steps) // 2, Counter[str]()  # the CPU takes as many
    for wait, times in gpu.waits.items():
        if wait.file.startswith("decoding/") and not wait.file.endswith("results.py"):
            waits[wait.function] += times
    n_blocks = waits.pop("BlockLoop._advance")
    if name in FIXED:
        assert waits.keys() <= {"UnmaskingSchedule.counts", "step_sizes"}
        assert all(times == n_blocks for times in waits.values())
    else:
        assert waits.pop("Step.decide") == n_steps >= n_blocks
        assert all(times <= n_steps for times in waits.values()) and bool(waits) == (name in TWICE)


@pytest.mark.parametrize("rule", ["shared", "rejection"])
def test_speculation_waits_once_a_round(rule: str) -> None:
    """For the tokens that stand, and how many they are. Texts are those of a CPU."""
    gpu = on_both(("causal", "next_token"), {"decoder": {"name": "speculative", "rule": rule, "length": 4}})
    waits = {wait.function: n for wait, n in gpu.waits.items() if wait.file.startswith("decoding/spec")}
    assert waits.keys() == {"Speculation._keep"} and 1 < waits["Speculation._keep"] < 7, "7 tokens in fewer rounds"


@pytest.mark.slow
def test_every_entry_of_the_table_is_a_wait() -> None:
    """Take out of the table what no longer waits."""
    places = set().union(*(on_both(MODES[1], setting).places() for setting in SETTINGS.values()))
    assert WAITS.keys() - places == set()
