"""The report: what is compared with what, and what the figures draw."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from run_folders import AUTOREGRESSIVE, Make, groups_in, lines_of, make_run  # noqa: F401 (a fixture)

from hybrid.evaluation import METRICS, Column, Metric, Texts
from hybrid.report import plots, sections
from hybrid.report.generated import front, written
from hybrid.report.groups import differences
from hybrid.report.run_record import find_runs, refuse_different_data

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


def test_a_run_that_was_not_evaluated_has_its_last_validation(make: Make, tmp_path: Path) -> None:
    make("a", nats={1: 2.0, 4: 3.0}, evaluated=False)
    ((run,), _) = find_runs([tmp_path / "runs"])
    found = {m.block_size: m for m in run.likelihoods}
    assert (found[4].likelihood, found[4].nats_per_token, found[4].stderr, found[4].by_count) == (
        "bound",
        4.0,
        0.01,
        {1: 1.5},
    )
    assert found[1].likelihood == "exact" and found[1].bits_per_byte == pytest.approx(3.0 * 2)
    assert run.how_evaluated == "during training, 4 rows, 2 draws"


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


def test_the_curve_over_block_sizes(make: Make, tmp_path: Path) -> None:
    """Models trained for one size make one curve, a mixed one has its own, the autoregressive one is a level."""
    make("ar", *AUTOREGRESSIVE, nats=1.0)
    make("b2", "objective.block_size=2", nats={2: 1.5, 8: 1.9})
    make("b8", "objective.block_size=8", nats=1.7)
    make("mixed", "objective.block_size=[8, 2]", nats={2: 1.6, 8: 1.8})
    figure = plots.block_sizes(groups_in(tmp_path / "runs"), (0.5, 0.6))
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
    drawn = lines_of(plots.block_sizes(groups_in(tmp_path / "runs"), None))
    assert drawn["context causal"] == drawn["context block_causal"] == [(2, 4.0), (4, 8.0)]


def test_one_block_size_is_drawn_side_by_side(make: Make, tmp_path: Path) -> None:
    make("a", "objective.draws=1", nats=2.0)
    make("b", "objective.draws=2", nats=2.1)
    figure = plots.block_sizes(groups_in(tmp_path / "runs"), None)
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
    marks = {(row[0], row[2]): row[-1] for row in section.table.cells}
    assert plots.trade([w for w in texts if w.is_repetitive], {"a": "red"}) is not None  # a front of none
    assert marks["a", "loop"] == "repeats itself" and marks["a", "beaten"] == "" and marks["b", "fast"] == "front"


def test_means_over_seeds_of_what_was_written(make: Make, tmp_path: Path) -> None:
    make("a-seed-0", decoders={"margin": (10.0, 1.0, 3.0), "random": (1.0, 1.0, 3.0)})
    make("a-seed-1", "run.seed=1", decoders={"margin": (30.0, 2.0, 2.0)})
    (one,) = written(groups_in(tmp_path / "runs"))  # `random` was not tried with all seeds
    assert (one.tokens_per_second, one.nats_per_byte, one.entropy) == (20.0, 1.5, 2.5)
    assert (one.real_nats_per_byte, one.real_entropy) == (1.0, 3.0)


class Shared(Metric):
    columns = (Column("shared", "shared_words", ".2f"),)
    is_compared = True

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        return {}


def test_a_metric_of_ones_own_has_a_column_where_it_asks_for_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        folder = make(f"a-seed-{seed}", f"run.seed={seed}", decoders={"margin": (10.0, 1.0, 3.0)})
        content = json.loads((folder / "eval.json").read_text())
        content["generation"][-1]["shared_words"] = 0.25 + seed / 2
        (folder / "eval.json").write_text(json.dumps(content))

    def headings() -> list[str]:
        found = sections.sections(groups_in(tmp_path / "runs"))
        table = next(s.table for s in found if s.title == "Quality against speed")
        assert table is not None
        return [f"{name}: {value}" for name, value in zip(table.columns, table.cells[0], strict=True)]

    before = headings()
    monkeypatch.setitem(METRICS, "shared", Shared)
    assert headings() == [*before[:-1], "shared: 0.50", before[-1]]


def test_curves_are_means_at_the_steps_that_all_seeds_have(make: Make, tmp_path: Path) -> None:
    make("a-seed-0")
    other = make("a-seed-1", "run.seed=1")
    records = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    records[-1] |= {"val/nelbo": 11.0, "time": 20.0}  # of the other seed they are 9 and 16
    (other / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    groups = groups_in(tmp_path / "runs")
    figure = plots.curves(groups, plots.colours(groups), "tokens")
    assert lines_of(figure)["a"] == [(8 * 128, 10.0)]
    assert lines_of(plots.curves(groups, plots.colours(groups), "seconds"))["a"] == [(18.0, 10.0)]


def test_every_group_has_a_colour_of_its_own(make: Make, tmp_path: Path) -> None:
    for i in range(9):
        make(f"m{i}", f"objective.draws={i + 1}")
    make("ar", *AUTOREGRESSIVE)
    found = {name: tuple(map(str, [c])) for name, c in plots.colours(groups_in(tmp_path / "runs")).items()}
    assert len(found) == len(set(found.values())) == 10


# ---------------------------------------------------------------------------------------------------------------------
# Known truth


@pytest.mark.slow
def test_the_entropy_of_the_source_is_a_line_and_what_is_below_it_is_told(make: Make, tmp_path: Path) -> None:
    known = {"entropy_per_token": 1.9, "validation": {"target_tokens": 9, "source_nats_per_token": 1.95}}
    make("a", "objective.block_size=2", nats=2.0, data=known)
    make("b", "objective.block_size=4", nats=2.1, data=known)
    first = sections.sections(groups_in(tmp_path / "runs"))[0]
    assert "entropy of the source is 3.8000 bits per byte" in first.text
    assert "Every likelihood lies above that" in first.text
    assert "evaluated on a part of that text only" in first.text  # 4 rows
    assert first.table is not None and [row[-2] for row in first.table.cells] == ["+0.1000", "+0.3000"]
    make("c", "objective.block_size=8", nats=1.8, data=known)
    assert "BELOW that" in sections.sections(groups_in(tmp_path / "runs"))[0].text
    make("d", "objective.block_size=16", nats=1.8)  # another source, or none that is known
    assert "entropy" not in sections.sections(groups_in(tmp_path / "runs"))[0].text
