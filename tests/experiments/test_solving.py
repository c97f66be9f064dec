"""The tables of right answers and of decoders: what they hold comes from the runs, and runs must belong together."""

from pathlib import Path

import pytest

from hybrid.config import load_config
from hybrid.runs.run import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two seeds of a tiny model of sums, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for seed in (0, 1):
        config = load_config(
            "configs/sums.yaml",
            [
                *("data.corpus.digits=2", "data.corpus.examples=400", "data.seq_len=10", "model.dim=16"),
                *("objective.block_size=[1,3]", "trainer.steps=4", "trainer.batch_tokens=40", "optim.warmup_steps=2"),
                *("eval.sample_prompts=[]", f"run.seed={seed}", f"run.name=s{seed}", f"run.folder={folder}"),
            ],
        )
        run = Run.of(config)
        run.open()
        run.train()
        found.append(run.folder)
    return found


def test_shares_of_right_answers_over_runs(command, runs, tmp_path):
    output = tmp_path / "solving.md"
    words = ("--runs", *runs, "--decoders", "margin", "margin:per_step=3", "--rows", 10, "--output", output)
    done = command("experiments.solving", *words)
    assert done.code == 0, done.err
    lines = [line.split("|")[1:-1] for line in done.out.splitlines() if line.startswith("|")]
    head, *body = [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]
    assert head[:3] == ["decoder", "solved at 1, %", "solved at 3, %"]
    assert {row[0]: row[3] for row in body} == {"margin": "3.0", "margin:per_step=3": "1.0"}, "forwards of a batch"
    assert all("±" in cell for row in body for cell in row[1:3])
    text = output.read_text(encoding="utf-8")
    assert done.out.strip() in text and "seeds 0, 1" in text and "10 answers of each of 2 runs" in text


def test_runs_of_different_settings_are_refused(command, runs, trained):
    assert "differs from" in command("experiments.solving", "--runs", runs[0], trained, "--rows", 2).error
    no_answers = command("experiments.solving", "--runs", trained, "--rows", 2)
    assert no_answers.code == 2 and "no prompts" in no_answers.error


def test_likelihoods_of_several_runs(command, runs, tmp_path):
    output = tmp_path / "likelihoods.md"
    words = ("--runs", *runs, "--block-size", 3, "--rows", 4, "--draws", 2, "--output", output)
    done = command("experiments.likelihoods", *words, "--orders", "left_to_right", "margin")
    assert done.code == 0, done.err
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if line[:1] == "|"]
    value = {line[0]: float(line[2].split()[0]) for line in cells if "±" in line[2]}
    assert value["best of all one-token orders, in hindsight"] <= value["best of these orders, in hindsight"]
    assert value["best of these orders, in hindsight"] <= value["order: margin"]
    assert value["best of all one-token orders, in hindsight"] <= value["random order, exact"]
    assert cells[2][0] == "exact" and cells[2][2] == "-", "block size 1 has a column of its own"
    assert done.out.strip() in output.read_text(encoding="utf-8")
    assert "from 2" in command("experiments.likelihoods", *words[:3], "--block-size", 1).error


def test_decoders_are_compared_on_text(command, trained, tmp_path):
    output = tmp_path / "decoders.md"
    runs = ("--checkpoint", trained, "--judge", trained, "--seeds", 0, 1, "--output", output)
    words = ("--decoders", "margin", "first_hitting:steps=2", "--samples", 4, "--new-tokens", 12, "--rows", 2)
    done = command("experiments.decoders", *runs, *words)
    assert done.code == 0, done.err
    text = output.read_text(encoding="utf-8")
    assert done.out.strip() in text and "seeds 0, 1" in text and output.with_suffix(".png").is_file()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.out.splitlines() if line[:1] == "|"}
    assert rows["margin"][0].strip() == "1.000" and rows["first_hitting:steps=2"][0].strip() == "0.500"
    assert rows["(real text)"][0].strip() == "-"
    assert rows["margin"][-1].strip() != "-" and rows["first_hitting:steps=2"][-1].strip() == "-", "policy likelihood"


def test_tokens_per_forward_at_batch_1(command, trained, tmp_path):
    output = tmp_path / "forwards.md"
    words = ("--samples", 2, "--new-tokens", 12, "--rows", 2, "--seeds", 0, 1, "--output", output)
    done = command("experiments.forwards", "--checkpoint", trained, "--judge", trained, "--block-size", 4, *words)
    assert done.code == 0, done.err
    assert output.with_suffix(".png").is_file() and output.with_name("forwards-2.png").is_file()
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in done.out.splitlines() if line.startswith("| 4 ")]
    rows = {line[1]: line[2:] for line in lines}
    assert len(rows) == 16
    for k in (1, 2, 4):
        assert rows[f"first_hitting:per_step={k}"][0] == f"{k:.2f} ± 0.00", "no row waits for another"
        assert rows[f"first_hitting:per_step={k}"][-1] == "-" and float(rows[f"entropy:per_step={k}"][-1]) > 0
    bounded = [float(rows[f"entropy_bounded:gamma={g}"][0].split()[0]) for g in (0.1, 0.5, 1.5, 4.0)]
    assert bounded == sorted(bounded) and bounded[-1] > bounded[0], "a looser bound reveals more at once"
    refused = command("experiments.forwards", "--checkpoint", trained, "--judge", trained, "--samples", 0)
    assert "at least" in refused.err
