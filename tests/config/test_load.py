"""Loading a configuration: precedence, bases, overrides, and the errors of one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Config, check, describe, load_config
from hybrid.config.schema import BACKENDS, SPECS, table, value_of


def write(folder: Path, **files: str) -> Path:
    """Write `name.yaml` for each argument; return the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def message(*overrides: str, path: Path | None = None) -> str:
    """The text of the error, which must be one line."""
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text and "full_key" not in text
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Merging


def test_defaults_are_those_of_the_dataclasses() -> None:
    expected = Config()
    expected.run.name = "default"
    assert load_config() == expected
    assert isinstance(load_config(), Config)
    assert check(load_config()) == []


def test_overrides_beat_the_file_beats_its_base_beats_the_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        child="base: middle.yaml\ntrainer: {log_every: 3}\noptim:\n",
        middle="base: root.yaml\ntrainer: {log_every: 2, save_every: 2, eval_every: 2}\n",
        root="trainer: {log_every: 1, save_every: 1, steps: 77}\n",
    )
    trainer = load_config(path, ["trainer.eval_every=4"]).trainer
    assert (trainer.log_every, trainer.save_every, trainer.eval_every, trainer.steps) == (3, 2, 4, 77)
    assert trainer.keep_last == Config().trainer.keep_last
    assert load_config(path, ["trainer.steps=5", "trainer.steps=6"]).trainer.steps == 6


def test_base_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, root="trainer: {steps: 12}")
    path = write(tmp_path / "deep", child="base: ../root.yaml")
    assert load_config(path).trainer.steps == 12


def test_the_name_of_a_run(tmp_path: Path) -> None:
    path = write(tmp_path, mine="trainer: {steps: 1}", named="run: {name: other}")
    assert load_config(path).run.name == "mine"
    assert load_config(path, ["run.name=x"]).run.name == "x"
    assert load_config(tmp_path / "named.yaml").run.name == "other"
    assert load_config().run.name == "default"


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("trainer.steps=10_000", "trainer.steps", 10_000),
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("trainer.minutes=null", "trainer.minutes", None),
        ("trainer.minutes=2", "trainer.minutes", 2.0),
        ("model.qk_norm=false", "model.qk_norm", False),
        # Where text is expected it stays text, whatever YAML would make of it.
        ("run.name=2024-01-01", "run.name", "2024-01-01"),
        ("run.name=007", "run.name", "007"),
        ("run.name=1e3", "run.name", "1e3"),
        ("run.name=true", "run.name", "true"),
        ("run.name='quoted'", "run.name", "quoted"),
        ("run.name=a=b", "run.name", "a=b"),
        ("data.corpus=*.txt", "data.corpus", "*.txt"),
        ("data.corpus=a: b #c", "data.corpus", "a: b #c"),
        ("data.revision=1234567e8", "data.revision", "1234567e8"),
        ("data.revision=null", "data.revision", None),
        ("data.column=no", "data.column", "no"),
        ("trainer.init_from=~/x", "trainer.init_from", "~/x"),
        ("objective.block_size=[1, 8, seq_len]", "objective.block_size", [1, 8, "seq_len"]),
        ("objective.block_size=seq_len", "objective.block_size", "seq_len"),
        ("eval.block_sizes=[1,4]", "eval.block_sizes", [1, 4]),
        ("eval.sample_prompts=['a, b', no]", "eval.sample_prompts", ["a, b", "no"]),
        ("trainer={steps: 5}", "trainer.steps", 5),
        ("objective.schedule={name: polynomial, power: 3}", "objective.schedule", {"name": "polynomial", "power": 3}),
        ("objective.schedule=polynomial", "objective.schedule", "polynomial"),
        ("objective.schedule={name: linear}", "objective.schedule", "linear"),
    ],
)
def test_override_values(override: str, key: str, value: Any) -> None:
    got = value_of(load_config(None, [override]), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["decoder={name: margin, steps: 8}"],
        ["decoder=margin", "decoder.steps=8"],
        ["decoder.name=margin", "decoder.steps=8"],
        ["decoder.steps=8", "decoder.name=margin"],
        ["decoder.steps=8", "decoder=margin"],
    ],
)
def test_ways_to_name_a_decoder(overrides: list[str]) -> None:
    config = load_config(None, overrides)
    assert config.decoder == {"name": "margin", "steps": 8}
    assert next(iter(config.decoder)) == "name"


def test_options_of_another_decoder_do_not_leak(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        same="base: root.yaml\ndecoder: {steps: 2}",
        other="base: root.yaml\ndecoder: margin",
        root="decoder: {name: confidence, threshold: 0.9}\n"
        "objective: {estimator: time, schedule: {name: polynomial, power: 3}}",
    )
    assert load_config(tmp_path / "root.yaml").decoder == {"name": "confidence", "threshold": 0.9}
    assert load_config(tmp_path / "other.yaml").decoder == {"name": "margin"}
    merged = load_config(path, ["decoder.threshold=null"])
    assert merged.decoder == {"name": "confidence", "threshold": None, "steps": 2}
    config = load_config(tmp_path / "root.yaml", ["objective.schedule=linear", "decoder=first_hitting"])
    assert config.objective.schedule == "linear" and config.decoder == {"name": "first_hitting"}
    more = load_config(tmp_path / "root.yaml", ["objective.schedule.power=4"])
    assert more.objective.schedule == {"name": "polynomial", "power": 4}


def test_values_are_plain_python(tmp_path: Path) -> None:
    config = load_config(None, ["objective.block_size=[1,2]", "decoder.steps=3", "eval.sample_prompts=[a]"])
    for value in (config.objective.block_size, config.eval.sample_prompts, config.run.imports):
        assert type(value) is list
    assert type(config.decoder) is dict
    config.eval.sample_prompts.append("b")
    assert load_config().eval.sample_prompts == Config().eval.sample_prompts


def test_imports_register_entries_before_tables_are_consulted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders: Any = table(SPECS["decoder"])
    backends: Any = table(BACKENDS)
    monkeypatch.setitem(decoders, "mine", None)  # both are put back after the test
    monkeypatch.setitem(backends, "mine", None)
    (tmp_path / "my_decoder_module.py").write_text(
        "from dataclasses import dataclass\nfrom hybrid.model.attention import BACKENDS\n"
        "from hybrid.decoding import DECODERS\n"
        "@dataclass(frozen=True)\nclass Mine:\n    eagerness: float = 0.5\n"
        "DECODERS['mine'] = Mine\nBACKENDS['mine'] = Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = ["run.imports=my_decoder_module", "decoder={name: mine, eagerness: 1}", "model.attention=mine"]
    config = load_config(None, overrides)
    assert config.run.imports == ["my_decoder_module"]
    assert config.decoder == {"name": "mine", "eagerness": 1}
    assert "eagerness=0.5" in describe()
    sys.modules.pop("my_decoder_module")


# ---------------------------------------------------------------------------------------------------------------------
# Errors of loading


@pytest.mark.parametrize(
    "override, words",
    [
        ("trainer.step=5", ["trainer.step:", "value 5", "minutes", "did you mean 'trainer.steps'?"]),
        ("modle.dim=5", ["modle.dim", "'modle'", "5", "objective", "did you mean 'model.dim'?"]),
        ("steps=5", ["steps", "did you mean 'trainer.steps'?"]),
        ("zzz={a: 1}", ["zzz", "groups: run, data"]),
        ("model.dim.x=5", ["model.dim.x", "unknown key"]),
        ("trainer.steps=abc", ["trainer.steps", "'abc'", "int"]),
        ("trainer.steps=1.5", ["trainer.steps", "1.5", "int"]),
        ("trainer.steps=true", ["trainer.steps", "True", "int"]),
        ("trainer.steps=", ["trainer.steps", "null", "int"]),
        ("trainer.steps=[1]", ["trainer.steps", "[1]", "int"]),
        ("trainer.steps={a: 1}", ["trainer.steps", "int"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "float"]),
        ("model.qk_norm=yes", ["model.qk_norm", "'yes'", "bool"]),
        ("trainer=5", ["trainer", "5", "mapping", "steps"]),
        ("optim.name=adamm", ["optim.name", "'adamm'", "adamw, muon", "did you mean 'adamw'?"]),
        ("model.attention=flexx", ["model.attention", "'flexx'", "sdpa", "did you mean 'flex'?"]),
        ("data.format=xml", ["data.format", "'xml'", "jsonl"]),
        ("decoder=margn", ["decoder", "'margn'", "first_hitting", "did you mean 'margin'?"]),
        ("decoder={name: margin, stepz: 2}", ["decoder.stepz", "2", "did you mean 'steps'?"]),
        ("decoder.steps=x", ["decoder.steps", "'x'", "int or null"]),
        ("decoder.steps=0", ["decoder.steps", "0", "at least 1"]),
        ("decoder=7", ["decoder", "7", "margin"]),
        ("decoder=", ["decoder", "None", "margin"]),
        ("objective.proposal={name: explicit, weights: [1, 0]}", ["objective.proposal.weights: [1.0, 0.0] must be"]),
        ("objective.proposal=explicit", ["objective.proposal", "needs its option 'weights'"]),
        ("objective.weighting=mask_git", ["objective.weighting", "did you mean 'maskgit'"]),
        ("objective.estimator=tme", ["objective.estimator", "'tme'", "count, time"]),
        ("objective.schedule=lin", ["objective.schedule", "'lin'", "cosine_mdlm"]),
        ("objective.schedule.power=2", ["objective.schedule.power", "linear has no options"]),
        ("trainer.steps", ["'trainer.steps'", "key=value"]),
        ("=5", ["'=5'", "key=value"]),
        ("eval.sample_prompts=[a", ["eval.sample_prompts=[a", "line 1", "YAML"]),
        ("run.imports=[no_such_module]", ["run.imports", "'no_such_module'"]),
        ("run.imports=3", ["run.imports", "3", "list"]),
    ],
)
def test_a_bad_override_is_one_line_naming_key_value_and_choices(override: str, words: list[str]) -> None:
    text = message(override)
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${trainer.steps}", "x${", "???", "\\${a}"])
@pytest.mark.parametrize("key", ["run.name", "eval.sample_prompts", "objective.block_size"])
def test_interpolation_is_refused_not_evaluated(key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/a/secret")
    quoted = f"'{value}'"
    text = message(f"{key}={value}" if key == "run.name" else f"{key}=[{quoted}]")
    assert key in text and "${" in text and "secret" not in text
    assert "eval.sample_prompts" in message(f"eval={{sample_prompts: [{quoted}]}}")


def test_errors_of_files_name_the_file(tmp_path: Path) -> None:
    assert "trainer.step" in message(path=write(tmp_path, a="trainer: {step: 4}"))
    text = message(path=write(tmp_path, b="trainer:\n  steps: abc\n"))
    assert "b.yaml" in text and "trainer.steps" in text and "'abc'" in text
    text = message(path=write(tmp_path, c="run:\n  seed: 1\n bad\n"))
    assert "c.yaml, line 3" in text and "YAML" in text
    text = message(path=write(tmp_path, d="trainer: {steps: 1}\ntrainer: {seed: 2}\n"))
    assert "d.yaml, line 2" in text and "'trainer' is given twice" in text
    assert "e.yaml" in message(path=write(tmp_path, e="just words"))
    assert "mapping" in message(path=write(tmp_path, f="- 1\n"))
    assert "1: unknown group" in message(path=write(tmp_path, g="1: 2\n"))
    assert "quote it" in message(path=write(tmp_path, h="run: {name: 2024}"))
    assert "run.imports" in message(path=write(tmp_path, i="run: {imports: [json, 3]}"))
    for tag in ("!!python/object/apply:os.getcwd []", "!!set {a}", "!!binary aGk=", "[&a [*a]]"):
        assert "j.yaml" in message(path=write(tmp_path, j=f"eval: {{sample_prompts: {tag}}}"))
    (tmp_path / "k.yaml").write_bytes(b"run: {name: \xff}")
    assert "UTF-8" in message(path=tmp_path / "k.yaml")
    assert "cannot be read" in message(path=tmp_path)
    assert load_config(write(tmp_path, empty="# nothing\n")).run.name == "empty"


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, quickstart="")
    text = message(path=tmp_path / "quikstart.yaml")
    assert "quikstart.yaml" in text and "did you mean 'quickstart.yaml'?" in text
    assert "does not exist" in message(path=tmp_path / "no" / "folder.yaml")


def test_errors_of_bases(tmp_path: Path) -> None:
    text = message(path=write(tmp_path, a="base: nothing.yaml"))
    assert "a.yaml: base:" in text and "nothing.yaml" in text
    text = message(path=write(tmp_path, b="base: c.yaml", c="base: d.yaml", d="base: b.yaml"))
    assert "cycle" in text and text.count("b.yaml") == 2
    assert "cycle" in message(path=write(tmp_path, e="base: ./e.yaml"))
    assert "g.yaml: base:" in message(path=write(tmp_path, g="base: [a]"))
    assert "base" in message("base=x.yaml")
    assert "i.yaml: trainer.step:" in message(path=write(tmp_path, h="base: i.yaml", i="trainer: {step: 1}"))
