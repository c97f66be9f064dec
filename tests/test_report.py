"""The report: what is compared with what, and what the figures draw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from run_folders import AUTOREGRESSIVE, Make, make_run  # noqa: F401 (a fixture)

from hybrid.report import figures, sections
from hybrid.report.generated import front, written
from hybrid.report.groups import Group, differences, gather
from hybrid.report.record import find_runs, refuse_different_data


def groups_in(folder: Path) -> list[Group]:
    return gather(find_runs([folder])[0])


# ---------------------------------------------------------------------------------------------------------------------
# Runs and groups


def test_seeds_are_one_model_and_only_what_differs_is_told(make: Make, tmp_path: Path) -> None:
    for seed, nats in enumerate((2.0, 2.2, 2.4)):
        make(f"b4-seed-{seed}", f"run.seed={seed}", "trainer.log_every=3", nats=nats)
    make("b8-seed-0", "objective.block_size=8", nats=2.5)
    make("ar-seed-0", *AUTOREGRESSIVE, nats=1.9)
    found = groups_in(tmp_path / "runs")
    assert [g.label for g in found] == ["ar", "b4", "b8"]  # the autoregressive one first, then by block size
    assert [len(g.runs) for g in found] == [1, 3, 1]
    keys = ["model.context", "model.prediction", "objective.block_size"]
    assert list(differences([run for g in found for run in g.runs])) == keys
    mean = found[1].nats(4)
    assert mean.value == pytest.approx(2.2) and mean.n == 3
    assert mean.error == pytest.approx(0.2 / math.sqrt(3))  # of the mean: scatter 0.2 over three seeds
    assert found[2].nats(8).error == 0.02  # one seed: the noise of the evaluation
    assert found[2].bits_per_byte(8).error == pytest.approx(0.04)
    assert found[1].by_count(4) == pytest.approx({n: 2.2 + n for n in range(1, 5)})


def test_names_that_do_not_tell_groups_apart_give_way_to_settings(make: Make, tmp_path: Path) -> None:
    make("a/run", "objective.draws=1")
    make("b/run", "objective.draws=2")
    assert [g.label for g in groups_in(tmp_path / "runs")] == ["a/run", "b/run"]
    make("x-seed-0", "objective.draws=3")
    make("x-seed-1", "objective.draws=4", "run.seed=1")
    assert [g.label for g in groups_in(tmp_path / "runs")][2:] == ["objective.draws = 3", "objective.draws = 4"]


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
            "data.cache_dir": "x", "decoder": "margin",
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
    (row,) = (dict(zip(section.table.columns, values, strict=True)) for values in section.table.rows)
    assert (row["minutes"], row["tokens"], row["seeds"]) == ("2.0", "853", 3)  # 360 s / 3, and 20 steps / 3


def test_a_run_that_was_not_evaluated_has_its_last_validation(make: Make, tmp_path: Path) -> None:
    make("a", nats={1: 2.0, 4: 3.0}, evaluated=False)
    ((run,), _) = find_runs([tmp_path / "runs"])
    found = {m.block_size: m for m in run.likelihoods}
    assert (found[4].method, found[4].nats, found[4].stderr, found[4].by_count) == ("bound", 4.0, 0.01, {1: 1.5})
    assert found[1].method == "exact" and found[1].bits_per_byte == pytest.approx(3.0 * 2)
    assert run.how_evaluated == "during training, 4 rows, 2 draws"


def test_each_block_size_has_its_own_figures(make: Make, tmp_path: Path) -> None:
    folder = make("a", "objective.block_size=[4,1]", nats={1: 2.0, 4: 3.0}, evaluated=False)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    last |= {"val/stderr/b1": 0.0, "val/stderr/b4": 0.25, "val_by_count/b1/n001": 3.0, "val_by_count/b4/n002": 4.5}
    (folder / "metrics.jsonl").write_text(json.dumps(last) + "\n")
    ((run,), _) = find_runs([tmp_path / "runs"])
    found = {m.block_size: (m.nats, m.stderr, m.bits_per_byte, m.by_count) for m in run.likelihoods}
    assert found == {1: (3.0, 0.0, 6.0, {1: 3.0}), 4: (4.0, 0.25, 8.0, {1: 1.5, 2: 4.5})}
    assert run.step == 8 and run.seconds == 16.0 and run.tokens(3) == 3 * 128 and run.own() is None


def test_what_an_evaluation_read_is_what_it_is_compared_on(make: Make, tmp_path: Path) -> None:
    """eval.json may be of other data than the training; and the last sample of several is shown."""
    folder = make("a")
    evaluation = json.loads((folder / "eval.json").read_text())
    evaluation["data"]["corpus_sha256"] = "c1"
    (folder / "eval.json").write_text(json.dumps(evaluation))
    for step in (4, 12, 8):
        (folder / "samples" / f"step-{step:08d}.txt").write_text(f"text of {step}")
    make("b")
    make("c", data={"validation": {"target_tokens": 8}})
    one, two, three = find_runs([tmp_path / "runs"])[0]
    assert one.sample == "text of 12" and two.sample == ""
    with pytest.raises(ValueError, match="a and b have another data"):
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
    make("b8-seed-0", "objective.block_size=8", nats={2: 5.0, 8: 2.0, 4: 4.0})
    make("b8-seed-1", "objective.block_size=8", "run.seed=1", nats={2: 6.0, 8: 2.5})
    make("mixed", "objective.block_size=[8,2]", nats={2: 3.0, 8: 3.5})
    groups = groups_in(tmp_path / "runs")
    assert {g.label: (g.evaluated, g.own) for g in groups} == {"b8": ([2, 8], 8), "mixed": ([2, 8], None)}
    first, *_, last = sections.sections(groups)
    assert first.table is not None and last.table is not None
    assert {(row[0], row[1]): row[2] for row in first.table.rows} == {
        ("b8", 2): "no", ("b8", 8): "alone", ("mixed", 2): "among others", ("mixed", 8): "among others",
    }  # fmt: skip
    shown = {row[0]: row[list(last.table.columns).index("bits per byte")] for row in last.table.rows}
    assert shown == {"b8": "4.5000 ± 0.5000 (bound)", "mixed": "6.0000 ± 0.0400 (bound)"}
    by_count = lines_of(figures.by_count(groups, figures.colours(groups)))
    assert by_count["b8"] == [(n, 2.25 + n) for n in range(1, 9)]
    assert by_count["mixed"] == [(n, 3.5 + n) for n in range(1, 9)]


def test_paths_that_hold_no_run(make: Make, tmp_path: Path) -> None:
    folder = make("a")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="samples: no run in it"):
        find_runs([folder / "samples"])
    (folder / "eval.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\n')
    with pytest.raises(ValueError, match=r"neither eval\.json nor a validation in metrics\.jsonl; finish the run"):
        find_runs([folder])


def test_other_data_and_tokenizers_are_refused_unless_forced(make: Make, tmp_path: Path) -> None:
    make("a")
    make("b")
    runs, _ = find_runs([tmp_path / "runs"])
    assert refuse_different_data(runs, force=False) == []
    make("c", data={"corpus_sha256": "c1"})
    make("d", data={"tokenizer_fingerprint": "t1"})
    for name, what in (("c", "another data"), ("d", "another tokenizer")):
        pair, _ = find_runs([tmp_path / "runs" / "a", tmp_path / "runs" / name])
        with pytest.raises(ValueError, match=f"a and {name} have {what}.*--force"):
            refuse_different_data(pair, force=False)
        (warning,) = refuse_different_data(pair, force=True)
        assert "compare with care" in warning


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def lines_of(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """Label -> the points of the lines of a figure that are in its legend."""
    (axes,) = figure.axes
    return {
        line.get_label(): list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in axes.get_lines()
        if not line.get_label().startswith("_") and len(line.get_xdata())
    }


def test_the_curve_over_block_sizes(make: Make, tmp_path: Path) -> None:
    """Models trained for one size make one curve, a mixed one has its own, the autoregressive one is a level."""
    make("ar", *AUTOREGRESSIVE, nats=1.0)
    make("b2", "objective.block_size=2", nats={2: 1.5, 8: 1.9})
    make("b8", "objective.block_size=8", nats=1.7)
    make("mixed", "objective.block_size=[8, 2]", nats={2: 1.6, 8: 1.8})
    figure = figures.block_sizes(groups_in(tmp_path / "runs"), (0.5, 0.6))
    drawn = lines_of(figure)
    assert drawn["each trained for its block size"] == [(2, 3.0), (8, 3.4)]
    assert drawn["mixed"] == [(2, 3.2), (8, 3.6)]
    assert drawn["b2, at other block sizes"] == [(2, 3.0), (8, 3.8)]
    assert {y for _, y in drawn["ar (exact)"]} == {2.0} and {y for _, y in drawn["entropy of the source"]} == {0.5}
    assert {y for _, y in drawn["the source, on this text"]} == {0.6}
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "exact" in texts and "bound (the truth is lower)" in texts


def test_families_have_a_curve_each(make: Make, tmp_path: Path) -> None:
    for context in ("causal", "block_causal"):
        for size in (2, 4):
            make(f"{context}-{size}", f"model.context={context}", f"objective.block_size={size}", nats=float(size))
    drawn = lines_of(figures.block_sizes(groups_in(tmp_path / "runs"), None))
    assert drawn["context causal"] == drawn["context block_causal"] == [(2, 4.0), (4, 8.0)]


def test_one_block_size_is_drawn_side_by_side(make: Make, tmp_path: Path) -> None:
    make("a", "objective.draws=1", nats=2.0)
    make("b", "objective.draws=2", nats=2.1)
    figure = figures.block_sizes(groups_in(tmp_path / "runs"), None)
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"] and axes.get_xlabel() == "bits per byte"


def test_the_front_of_quality_and_speed(make: Make, tmp_path: Path) -> None:
    """Lower is better for the judge; what repeats itself has a low entropy and does not count."""
    made = {"slow": (10.0, 1.0, 3.0), "fast": (90.0, 1.5, 3.0), "beaten": (50.0, 1.6, 3.0), "loop": (95.0, 0.1, 1.0)}
    make("a", "objective.draws=1", decoders=made)
    make("b", "objective.draws=2", decoders={"slow": (9.0, 1.1, 3.0), "fast": (80.0, 1.4, 2.9)})
    texts = written(groups_in(tmp_path / "runs"))
    assert [(w.group, w.decoder) for w in front(texts)] == [("a", "slow"), ("b", "fast"), ("a", "fast")]
    assert [w.decoder for w in texts if w.is_repetitive] == ["loop"]
    section = next(s for s in sections.sections(groups_in(tmp_path / "runs")) if s.title == "Quality against speed")
    assert section.table is not None
    marks = {(row[0], row[2]): row[-1] for row in section.table.rows}
    assert figures.trade([w for w in texts if w.is_repetitive], {"a": "red"}) is not None  # a front of none
    assert marks["a", "loop"] == "repeats itself" and marks["a", "beaten"] == "" and marks["b", "fast"] == "front"


def test_means_over_seeds_of_what_was_written(make: Make, tmp_path: Path) -> None:
    make("a-seed-0", decoders={"margin": (10.0, 1.0, 3.0), "random": (1.0, 1.0, 3.0)})
    make("a-seed-1", "run.seed=1", decoders={"margin": (30.0, 2.0, 2.0)})
    (one,) = written(groups_in(tmp_path / "runs"))  # `random` was not tried with all seeds
    assert (one.tokens_per_second, one.nats_per_byte, one.entropy) == (20.0, 1.5, 2.5)
    assert (one.real_nats_per_byte, one.real_entropy) == (1.0, 3.0)


def test_a_text_repeats_itself_below_nine_tenths_of_the_entropy_of_real_ones(make: Make, tmp_path: Path) -> None:
    make("a", decoders={"just": (1.0, 1.0, 2.71), "not": (1.0, 1.0, 2.69)})
    assert {w.decoder: w.is_repetitive for w in written(groups_in(tmp_path / "runs"))} == {"just": False, "not": True}


def test_curves_are_means_at_the_steps_that_all_seeds_have(make: Make, tmp_path: Path) -> None:
    make("a-seed-0")
    other = make("a-seed-1", "run.seed=1")
    records = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    records[-1] |= {"val/nelbo": 11.0, "time": 20.0}  # of the other seed they are 9 and 16
    (other / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    groups = groups_in(tmp_path / "runs")
    figure = figures.curves(groups, figures.colours(groups), "tokens")
    assert lines_of(figure)["a"] == [(8 * 128, 10.0)]
    assert lines_of(figures.curves(groups, figures.colours(groups), "seconds"))["a"] == [(18.0, 10.0)]


def test_every_group_has_a_colour_of_its_own(make: Make, tmp_path: Path) -> None:
    for i in range(9):
        make(f"m{i}", f"objective.draws={i + 1}")
    make("ar", *AUTOREGRESSIVE)
    found = {name: tuple(map(str, [c])) for name, c in figures.colours(groups_in(tmp_path / "runs")).items()}
    assert len(found) == len(set(found.values())) == 10


# ---------------------------------------------------------------------------------------------------------------------
# Known truth


def test_the_entropy_of_the_source_is_a_line_and_what_is_below_it_is_told(make: Make, tmp_path: Path) -> None:
    known = {"entropy_per_token": 1.9, "validation": {"target_tokens": 9, "source_nats_per_token": 1.95}}
    make("a", "objective.block_size=2", nats=2.0, data=known)
    make("b", "objective.block_size=4", nats=2.1, data=known)
    first = sections.sections(groups_in(tmp_path / "runs"))[0]
    assert "entropy of the source is 3.8000 bits per byte" in first.text
    assert "Every likelihood lies above that" in first.text
    assert "evaluated on a part of that text only" in first.text  # 4 rows
    assert first.table is not None and [row[-2] for row in first.table.rows] == ["+0.1000", "+0.3000"]
    make("c", "objective.block_size=8", nats=1.8, data=known)
    assert "BELOW that" in sections.sections(groups_in(tmp_path / "runs"))[0].text
    make("d", "objective.block_size=16", nats=1.8)  # another source, or none that is known
    assert "entropy" not in sections.sections(groups_in(tmp_path / "runs"))[0].text
