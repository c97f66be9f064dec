"""Which runs a report takes together, what it calls them, and the figures of each, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import AUTOREGRESSIVE, Make, groups_in, lines_of, make_run  # noqa: F401 (a fixture)

from hybrid.report import plots, sections
from hybrid.report.generated import written
from hybrid.report.run_record import find_runs, refuse_different_data


@pytest.mark.thin(6)
@pytest.mark.parametrize(
    "name, seed, label",
    [
        ("b4-seed-0", 0, "b4"), ("b4-seed0", 0, "b4"), ("b4_seed_12", 12, "b4"), ("b4-s1", 1, "b4"), ("b4_s1", 1, "b4"),
        ("b4.s007", 7, "b4"), ("b4-Seed-3", 3, "b4"), ("b4/seed-3", 3, "b4"), ("b4s3", 3, "b4"), ("b4seed=3", 3, "b4"),
        # Words and numbers that only look like a seed.
        ("bs16", 16, "bs16"), ("steps300", 300, "steps300"), ("big-blocks8", 8, "big-blocks8"), ("b16", 16, "b16"),
        ("\u03b2s2", 2, "\u03b2s2"), ("linseed3", 3, "linseed3"), ("seeds-4", 4, "seeds-4"), ("b4-s16", 0, "b4-s16"),
        ("b4-seed-10", 0, "b4-seed-10"), ("b4-seed-1", 11, "b4-seed-1"), ("seed-0-steps300", 300, "seed-0-steps300"),
    ],
)  # fmt: skip
def test_a_label_is_the_name_without_the_seed_and_nothing_more(
    name: str, seed: int, label: str, make: Make, tmp_path: Path
) -> None:
    make(name, f"run.seed={seed}")
    make("other", "objective.draws=2")
    assert sorted(g.label for g in groups_in(tmp_path / "runs")) == sorted([label, "other"])


def test_names_that_are_nothing_but_a_seed(make: Make, tmp_path: Path) -> None:
    make("s0", nats=2.0)
    make("s1", "run.seed=1", nats=2.2)
    (one,) = groups_in(tmp_path / "runs")
    assert one.label == "s0" and one.nats(4).value == pytest.approx(2.1)


def test_runs_of_other_data_are_no_seeds_of_one_model(make: Make, tmp_path: Path) -> None:
    """What is under `data.` changes what is trained, but for the folder in which it is kept."""
    make("a", nats=2.0)
    make("b", "data.validation_fraction=0.1", nats=3.0)
    make("c", "data.seq_len=16", nats=4.0)
    make("d", "data.cache_dir=elsewhere", "run.seed=1", nats=2.5)
    found = groups_in(tmp_path / "runs")
    assert sorted((len(g.runs), g.nats(4).value) for g in found) == [(1, 3.0), (1, 4.0), (2, 2.25)]
    assert set(found[0].settings) == {"data.seq_len", "data.validation_fraction"}


@pytest.mark.thin(6)
@pytest.mark.parametrize(
    "override, is_another",
    [
        *((f"{key}={value}", True) for key, value in {
            "data.validation_fraction": 0.1, "model.context": "causal", "model.n_layers": 2,
            "objective.weighting": "maskgit", "optim.lr": 0.5, "optim.ema_decay": 0, "trainer.steps": 9,
            "trainer.batch_tokens": 64, "trainer.precision": "bf16", "trainer.init_from": "x", "trainer.minutes": 1,
        }.items()),
        *((f"{key}={value}", False) for key, value in {
            "run.device": "cuda", "eval.rows": 2, "eval.draws": 9, "trainer.log_every": 1, "trainer.eval_every": 1,
            "trainer.save_every": 1, "trainer.sample_every": 1, "trainer.keep_last": 1, "trainer.resume": "auto",
            "data.cache_dir": "x", "decoder": "margin", "model.attention": "eager", "trainer.compile": "on",
            "trainer.parallel": "fsdp", "trainer.recompute": "true", "trainer.micro_batch_tokens": 64,
            "trainer.max_bad_steps": 9,
        }.items()),
    ],
)  # fmt: skip
def test_which_settings_make_another_model(override: str, is_another: bool, make: Make, tmp_path: Path) -> None:
    make("a")
    make("b", override, "run.seed=1")
    assert len(groups_in(tmp_path / "runs")) == (2 if is_another else 1)


def test_minutes_and_tokens_are_means_over_seeds(make: Make, tmp_path: Path) -> None:
    """The last records are of 16 seconds and step 8 of 128 tokens, of 5.6 minutes, and of step 4."""
    for seed, (step, seconds) in enumerate(((8, 16.0), (8, 336.0), (4, 8.0))):
        folder = make(f"a-seed-{seed}", f"run.seed={seed}")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": seconds}) + "\n")
    section = sections.sections(groups_in(tmp_path / "runs"))[-1]
    assert section.title == "Models" and section.table is not None
    (row,) = (dict(zip(section.table.columns, values, strict=True)) for values in section.table.cells)
    assert (row["minutes"], row["tokens"], row["seeds"]) == ("2.0", "853", 3)  # 360 s / 3, and 20 steps / 3


def test_each_block_size_has_its_own_figures(make: Make, tmp_path: Path) -> None:
    folder = make("a", "objective.block_size=[4,1]", nats={1: 2.0, 4: 3.0}, evaluated=False)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    last |= {"val/stderr/b1": 0.0, "val/stderr/b4": 0.25, "val_by_count/b1/n001": 3.0, "val_by_count/b4/n002": 4.5}
    (folder / "metrics.jsonl").write_text(json.dumps(last) + "\n")
    ((run,), _) = find_runs([tmp_path / "runs"])
    found = {m.block_size: (m.nats_per_token, m.stderr, m.bits_per_byte, m.by_count) for m in run.likelihoods}
    assert found == {1: (3.0, 0.0, 6.0, {1: 3.0}), 4: (4.0, 0.25, 8.0, {1: 1.5, 2: 4.5})}
    assert run.step == 8 and run.seconds == 16.0 and run.tokens(3) == 3 * 128 and run.own() is None


def test_what_an_evaluation_read_is_what_it_is_compared_on(make: Make, tmp_path: Path) -> None:
    """eval.json may be of other data than the training; and the last sample of several is shown."""
    folder = make("a")
    evaluation = json.loads((folder / "eval.json").read_text())
    evaluation["data"]["corpus_sha256"] = "c1" * 32
    (folder / "eval.json").write_text(json.dumps(evaluation))
    for step in (4, 8, 6):
        (folder / "samples" / f"step-{step:08d}.txt").write_text(f"text of {step}")
    make("b")
    make("c", data={"validation": {"target_tokens": 8}})
    one, two, three = find_runs([tmp_path / "runs"])[0]
    assert one.sample == "text of 8" and two.sample == ""
    with pytest.raises(ValueError, match=r"a and b have another data \(corpus_sha256: c1c1c1c1 and \w{1,8}\)"):
        refuse_different_data([one, two], force=False)
    with pytest.raises(ValueError, match=r"b and c have another validation text .*: 9 and 8"):
        refuse_different_data([two, three], force=False)


def test_which_runs_are_autoregressive(make: Make, tmp_path: Path) -> None:
    make("ar", *AUTOREGRESSIVE)
    make("bidirectional", "objective.block_size=1")
    make("in-place", "objective.block_size=1", "model.context=causal")
    make("mixed", *AUTOREGRESSIVE, "objective.block_size=[1,4]", nats={1: 1.0, 4: 2.0})
    found = {run.name: run.is_autoregressive for run in find_runs([tmp_path / "runs"])[0]}
    assert found == {"ar": True, "bidirectional": False, "in-place": False, "mixed": False}


def test_a_group_is_compared_where_all_of_its_seeds_were_evaluated(make: Make, tmp_path: Path) -> None:
    """And in the list of models at the size that it was trained for, if it is one."""
    make("b8-seed-0", "objective.block_size=8", nats={2: 5.0, 8: 2.0, 4: 4.0, 16: 7.0})
    make("b8-seed-1", "objective.block_size=8", "run.seed=1", nats={2: 6.0, 8: 2.5, 16: 8.0})
    make("mixed", "objective.block_size=[8,2]", nats={2: 3.0, 8: 3.5})
    groups = groups_in(tmp_path / "runs")
    assert {g.label: (g.evaluated, g.own) for g in groups} == {"b8": ([2, 8, 16], 8), "mixed": ([2, 8], None)}
    first, *_, last = sections.sections(groups)
    assert first.table is not None and last.table is not None
    assert {(row[0], row[1]): row[2] for row in first.table.cells} == {
        ("b8", 2): "no", ("b8", 8): "alone", ("b8", 16): "no",
        ("mixed", 2): "among others", ("mixed", 8): "among others",
    }  # fmt: skip
    shown = {row[0]: row[list(last.table.columns).index("bits per byte")] for row in last.table.cells}
    assert shown == {"b8": "4.5000 ± 0.5000 (bound)", "mixed": "6.0000 ± 0.0400 (bound)"}
    by_count = lines_of(plots.by_count(groups, plots.colours(groups)))
    assert by_count["b8"] == [(n, 2.25 + n) for n in range(1, 9)]
    assert by_count["mixed"] == [(n, 3.5 + n) for n in range(1, 9)]


def test_a_text_repeats_itself_below_nine_tenths_of_the_entropy_of_real_ones(make: Make, tmp_path: Path) -> None:
    make("a", decoders={"just": (1.0, 1.0, 2.71), "not": (1.0, 1.0, 2.69)})
    assert {w.decoder: w.is_repetitive for w in written(groups_in(tmp_path / "runs"))} == {"just": False, "not": True}
