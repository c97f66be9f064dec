"""The report: what is compared with what, what the figures draw, and what a page must not do."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Configure

from hybrid.config import to_yaml
from hybrid.report import figures, sections
from hybrid.report.generated import front, written
from hybrid.report.groups import Group, differences, gather
from hybrid.report.record import find_runs, refuse_different_data

Make = Callable[..., Path]
AUTOREGRESSIVE = ("objective.block_size=1", "model.context=causal", "model.prediction=next_token")


@pytest.fixture
def make(tmp_path: Path, configure: Configure) -> Make:
    """make(name, *overrides, nats=..., ...) writes the folder of a run that never was."""

    def run(
        name: str, *overrides: str, nats: float | dict[int, float] = 2.0, data: dict[str, Any] | None = None,
        decoders: dict[str, tuple[float, float, float]] | None = None, evaluated: bool = True, sample: str = "",
    ) -> Path:  # fmt: skip
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = configure(tmp_path, f"run.name={name}", "objective.block_size=4", *overrides)
        (folder / "config.yaml").write_text(to_yaml(config))
        facts: dict[str, Any] = {"corpus_sha256": "c0", "tokenizer_fingerprint": "t0", "tokenizer": "char"}
        facts |= {"validation": {"target_tokens": 9}, **(data or {})}
        environment = {
            "commit": "abcdef0123", "dirty": False, "device": "cpu", "processor": "a processor", "threads": 1,
            "libraries": {"torch": "2"}, "data": facts, "parameters": 1234,
        }  # fmt: skip
        (folder / "environment.json").write_text(json.dumps(environment))
        by_size = nats if isinstance(nats, dict) else {sizes_of(config)[0]: nats}
        values = {"val/nelbo": 9.0, "val/bits_per_byte": 18.0}
        for size, value in by_size.items():
            values |= {f"val/nelbo/b{size}": value + 1, f"val/stderr/b{size}": 0.01}
            values |= {f"val/likelihood/b{size}": "exact" if size == 1 else "bound", f"val_by_count/b{size}/n001": 1.5}
        records = [{"step": s, "time": 2.0 * s, "train/nelbo": 3.0 - s / 10} for s in range(1, 8)]
        records.append({"step": 8, "time": 16.0, "train/nelbo": 2.2, **values})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        (folder / "samples").mkdir()
        if sample:
            (folder / "samples" / "step-00000008.txt").write_text(sample)
        if evaluated:
            lines = [
                {
                    "block_size": size, "likelihood": "exact" if size == 1 else "bound", "nats_per_token": value,
                    "stderr": 0.0 if size == 1 else 0.02, "bits_per_byte": 2 * value,
                    "by_count": {str(n): value + n for n in range(1, size + 1)},
                }
                for size, value in by_size.items()
            ]  # fmt: skip
            result: dict[str, Any] = {
                "results": [*lines, {**lines[0], "likelihood": "policy"}], "data": facts,
                "settings": {"rows": 4, "draws": 2, "samples": 3, "temperature": 1.0}, "environment": environment,
            }  # fmt: skip
            if decoders:
                real = {"decoder": "(real text)", "judge_nats_per_byte": 1.0, "entropy": 3.0}
                result["generation"] = [real] + [
                    {
                        "decoder": name, "block_size": sizes_of(config)[0], "tokens_per_second": speed,
                        "nfe_per_token": 1.0, "entropy": entropy, "judge_nats_per_byte": quality,
                    }
                    for name, (speed, quality, entropy) in decoders.items()
                ]  # fmt: skip
                result["judge"] = {"name": "ar", "path": "runs/ar"}
            (folder / "eval.json").write_text(json.dumps(result))
        return folder

    return run


def sizes_of(config: Any) -> list[int]:
    sizes = config.objective.block_size
    return sizes if isinstance(sizes, list) else [sizes]


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


def test_a_run_that_was_not_evaluated_has_its_last_validation(make: Make, tmp_path: Path) -> None:
    make("a", nats={1: 2.0, 4: 3.0}, evaluated=False)
    ((run,), _) = find_runs([tmp_path / "runs"])
    found = {m.block_size: m for m in run.likelihoods}
    assert (found[4].method, found[4].nats, found[4].stderr, found[4].by_count) == ("bound", 4.0, 0.01, {1: 1.5})
    assert found[1].method == "exact" and found[1].bits_per_byte == pytest.approx(3.0 * 2)
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


def test_a_sweep_is_reported_without_its_failed_runs(make: Make, tmp_path: Path, command: Command) -> None:
    make("a")
    bad = make("bad", evaluated=False)
    (bad / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\n')
    slow = make("slow", "trainer.steps=9", evaluated=False)
    done = command("report.__main__", tmp_path / "runs")
    assert done.code == 0, done.err
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    for text in (f"Left out: {bad}: neither", "slow stopped at step 8 of 9.", "not evaluated alike"):
        assert text in done.err and text in page
    assert "bad: neither eval.json" in command("report.__main__", tmp_path / "runs" / "a", bad).error
    shutil.copytree(bad, slow, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs" / "a")
    assert "none of its 2 runs can be read; Left out" in command("report.__main__", tmp_path / "runs").error


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


def test_curves_are_means_at_the_steps_that_all_seeds_have(make: Make, tmp_path: Path) -> None:
    make("a-seed-0")
    make("a-seed-1", "run.seed=1")
    groups = groups_in(tmp_path / "runs")
    figure = figures.curves(groups, figures.colours(groups), "tokens")
    assert lines_of(figure)["a"] == [(8 * 128, 9.0)]
    assert lines_of(figures.curves(groups, figures.colours(groups), "seconds"))["a"] == [(16.0, 9.0)]


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


# ---------------------------------------------------------------------------------------------------------------------
# The command


class Elements(HTMLParser):
    """What a page loads, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "data") and v and v[0] != "#"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_else_and_escapes_what_models_write(
    make: Make, tmp_path: Path, command: Command
) -> None:
    hostile = "<script>alert(1)</script> & \"quotes\" <img src='http://x/y'> \x00 \u2028 end"
    make("b4", nats=2.0, sample=hostile)
    make("<b>8", "objective.block_size=8", nats=2.5, sample="plain")
    done = command("report.__main__", tmp_path / "runs", "--title", "A <b> & c")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "report"
    assert done.out.strip() == str(folder / "index.html")
    text = (folder / "index.html").read_text()
    page = Elements()
    page.feed(text)
    assert page.loaded == [] and "url(http" not in text and "@import" not in text
    assert page.tags.count("script") == 1 and "img" not in page.tags and page.tags.count("svg") == 4
    assert any("<script>alert(1)</script>" in word for word in page.words) and "A <b> & c" in page.words
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers)) > 20  # those of several figures do not collide
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(identifiers)


def test_everything_is_written_and_a_second_report_replaces_the_first(
    make: Make, tmp_path: Path, command: Command
) -> None:
    make("ar", *AUTOREGRESSIVE, nats=1.5)
    make("b4-seed-0", nats=2.0)
    make("b4-seed-1", "run.seed=1", nats=2.2)
    folder = tmp_path / "out"
    for _ in range(2):
        done = command("report.__main__", tmp_path / "runs", "--output", folder)
        assert done.code == 0, done.err
    plots = ["block_size", "by_count", "curve_seconds", "curve_tokens"]
    expected = ["index.html", *(f"report-{p}.png" for p in plots), "report.md", "runs.csv"]
    assert sorted(p.name for p in folder.iterdir()) == expected
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert [(r["run"], r["model"], r["seed"], r["likelihood"]) for r in rows] == [
        ("ar", "ar", "0", "exact"), ("b4-seed-0", "b4", "0", "bound"), ("b4-seed-1", "b4", "1", "bound"),
    ]  # fmt: skip
    assert float(rows[2]["bits_per_byte"]) == 4.4 and rows[0]["model.context"] == "causal"
    markdown = (folder / "report.md").read_text()
    assert "| b4 | 4 | alone | bound | ≤ 2.1000 ± 0.1000 | ≤ 4.2000 ± 0.2000 | 2 |" in markdown
    assert "| ar | 1 | alone | exact | = 1.5000 ± 0.0000 | = 3.0000 ± 0.0000 | 1 |" in markdown
    assert "![bits per byte against block size](report-block_size.png)" in markdown
    assert "Made by `python -m hybrid.report" in markdown


def test_markdown_alone(make: Make, tmp_path: Path, command: Command) -> None:
    make("b4")
    done = command("report.__main__", tmp_path / "runs", "--output", tmp_path / "docs.md")
    assert done.code == 0, done.err
    assert "docs-curve_tokens.png" in (tmp_path / "docs.md").read_text()
    assert (tmp_path / "docs-curve_tokens.png").is_file() and not (tmp_path / "index.html").exists()


def test_nothing_that_is_no_report_is_overwritten(make: Make, tmp_path: Path, command: Command) -> None:
    make("b4")
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    done = command("report.__main__", tmp_path / "runs", "--output", other)
    assert "exists and is no report; choose another folder" in done.error
    (tmp_path / "mine.md").write_text("mine")
    done = command("report.__main__", tmp_path / "runs", "--output", tmp_path / "mine.md")
    assert done.code == 2 and "was not written by an experiment" in done.err
    assert (other / "index.html").read_text() == (tmp_path / "mine.md").read_text() == "mine"


def test_runs_on_other_data(make: Make, tmp_path: Path, command: Command) -> None:
    make("a")
    make("b", data={"corpus_sha256": "c1"})
    assert "can't be compared" in command("report.__main__", tmp_path / "runs").error
    done = command("report.__main__", tmp_path / "runs", "--force")
    assert done.code == 0 and "compare with care" in done.err
    assert 'class="warning"' in (tmp_path / "runs" / "report" / "index.html").read_text()


def test_a_real_run(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    """What training writes is what the report reads."""
    done = command("report.__main__", copy_of_trained, "--output", tmp_path / "report")
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "report" / "runs.csv").read_text().splitlines()))
    last = json.loads((copy_of_trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {r["block_size"]: float(r["nats_per_token"]) for r in rows} == {
        "1": last["val/nelbo/b1"], "4": last["val/nelbo/b4"],
    }  # fmt: skip
    factor = last["val/bits_per_byte"] / last["val/nelbo"]
    assert [float(r["bits_per_byte"]) / float(r["nats_per_token"]) for r in rows] == pytest.approx([factor] * 2)
