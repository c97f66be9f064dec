"""Configurations that nobody means: each is one line that names what is wrong, at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Configure
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import dialect, load_config
from hybrid.config.check import check
from hybrid.config.schema import SPECS, known_keys
from hybrid.config.show import inline
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.device import resolve_device
from hybrid.model.build import build_model, check_batch, check_weights, memory_of, n_parameters
from hybrid.options import path_of
from hybrid.runs.run import Run


def refusal(call: Callable[[], Any]) -> str:
    """The one line of the ValueError that `call` raises, without waiting for it."""
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert time.process_time() - start < 5
    assert text and "\n" not in text and len(text) < 800, text[:2000]
    return text


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    "text, words",
    [
        (BOMB, "line 5: not valid YAML: more than 10,000 values"),
        ("run: {imports: &a [*a]}", "line 1: not valid YAML: an alias of the value that it stands in"),
        ("&a {b: *a}", "an alias of the value that it stands in"),
        (f"run: {{imports: {'[' * 300}{']' * 300}}}", "nested deeper than 30 levels"),
        ("[" * 100_000, "nested deeper than 30 levels"),
        ("\n".join(f"k{i}: 1" for i in range(20_000)), "line 5000: not valid YAML: more than 10,000 values"),
        ("x: " + "y" * 10_000_000, "has more than 1,000,000 bytes"),
        ("run: {seed: !!int ''}", "line 1: not valid YAML: '' is no int"),
        ("\nrun: {seed: !!bool abc}", "line 2: not valid YAML: 'abc' is no bool"),
        ("run: {seed: !!float x}", "'x' is no float"),
        ("run: {seed: !!timestamp x}", "line 1: not valid YAML: !!timestamp is not plain data; write a text, a number"),
        ("run: {seed: !!binary '@@'}", "line 1: not valid YAML: !!binary is not plain data; write a text, a number"),
        ("run: {seed: !!python/tuple [1]}", "could not determine a constructor"),
        ("run: {seed: !!set {a: 1}}", "line 1: not valid YAML: !!set is not plain data; write a text, a number"),
        ("run: {seed: " + "9" * 5000 + "}", "is no int"),
        ("? [a]\n: 3", "line 1: not valid YAML: a list or a mapping cannot be a key"),
        ("run: {<<: 3}", "expected a mapping or list of mappings for merging"),
        ("run: {imports: {a: 1}}", "run.imports: {'a': 1} is a mapping"),
        ("objective: {block_size: {a: 1}}", "objective.block_size: {'a': 1} is a mapping"),
        ("1: 2", "unknown group '1'"),
        ("null: 2", "unknown group 'None'"),
        ("x" * 64_019, "(64,021 characters) is a str; a config file is a mapping"),
        ("run: {? " + "x" * 64_019 + " : 1}", "xxx... (64,023 characters): unknown key"),
        ("decoder: {name: margin, ? " + "x" * 64_019 + " : 1}", "has no such option"),
        ("decoder: {name: " + "x" * 64_019 + "}", "decoder: 'xxx"),
        ("decoder: {name: " + "x" * 4000 + "}", "(4,002 characters) is not one of ancestral"),
        ("data: {tokenizer: " + "x" * 64_019 + "}", "data.tokenizer: 'xxx"),
        ("data: {tokenizer: " + "x" * 300 + "}", "data.tokenizer: 'xxx"),  # no name of a file is so long
        ("data: {tokenizer: " + "x/" * 2000 + "}", "data.tokenizer: 'x/x"),
        ('run: {name: "a\\0b"}', "run.name: 'a\\x00b' holds a NUL"),
        ('base: "a\\0b"', "base: 'a\\x00b' is not the path of a YAML file"),
        ("base: .", "cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_a_file_that_nobody_means_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert words in refusal(lambda: load_config(path))


def test_aliases_within_bounds_are_what_they_stand_for(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("trainer: &a {steps: 7}\neval: {sample_prompts: &b [x, y]}\nrun: {imports: []}\n")
    assert dialect.read(tmp_path / "c.yaml")["trainer"] == {"steps": 7}
    assert dialect.parse("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &m {d: 1}, e: 2}\nf: *m", "x") == {
        "a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 1, "e": 2}, "f": {"d": 1},
    }  # fmt: skip


def test_bases_that_go_round_in_circles_through_links(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to("link.yaml")
    assert "Too many levels of symbolic links" in refusal(lambda: load_config(tmp_path / "link.yaml"))
    (tmp_path / "a.yaml").write_text("base: link.yaml\n")
    assert "base: config file" in refusal(lambda: load_config(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("base: c.yaml\n")
    (tmp_path / "c.yaml").symlink_to("b.yaml")
    assert "base: a cycle" in refusal(lambda: load_config(tmp_path / "b.yaml"))
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "d.yaml").write_text("base: here/d.yaml\n")
    assert "base: a cycle" in refusal(lambda: load_config(tmp_path / "d.yaml"))
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    assert "a chain of more than 30 files" in refusal(lambda: load_config(tmp_path / "0.yaml"))


@pytest.mark.parametrize(
    "module, words",
    [
        (".", "'.' is not the name of a module"),
        ("..x", "'..x' is not the name of a module"),
        ("a..b", "is not the name of a module"),
        ("'a b '", "is not the name of a module"),
        ("dir/mod", "is not the name of a module"),
        ("''", "'' is not the name of a module"),
        ("no such module", "cannot import 'no such module'"),
        ("hostile_plain.py", "run.imports: 'hostile_plain.py' is no module; name it without .py"),
        ("hostile_raises", "importing 'hostile_raises' raised ZeroDivisionError: division by zero"),
        ("hostile_exits", "importing 'hostile_exits' raised SystemExit: 0"),
        ("hostile_syntax", "importing 'hostile_syntax' raised SyntaxError"),
        ("hostile_value", "importing 'hostile_value' raised ValueError: two lines"),
        ("[1]", "is not a list of module names"),
        ("x" * 4000, "cannot import"),
    ],
)
def test_modules_that_cannot_be_imported(
    module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile_raises.py").write_text("1 / 0\n")
    (tmp_path / "hostile_plain.py").write_text("")
    (tmp_path / "hostile_exits.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "hostile_syntax.py").write_text("def\n")
    (tmp_path / "hostile_value.py").write_text("raise ValueError('two\\n lines')\n")
    assert words in refusal(lambda: load_config(None, [f"run.imports={module}"]))


@pytest.mark.parametrize("device", ["meta", "mps", "xla", "cpu:7", "cuda:-1", "cuda:" + "9" * 30, "", "gpu", "cuda:x"])
def test_devices_that_models_do_not_run_on(device: str) -> None:
    assert "run.device" in refusal(lambda: load_config(None, [f"run.device={device}"]))


def test_a_device_that_this_machine_does_not_have(configure: Configure, tmp_path: Path) -> None:
    assert "'cuda:99' is not on this machine" in refusal(lambda: Run.of(configure(tmp_path, "run.device=cuda:99")))
    assert resolve_device("cpu:0") == torch.device("cpu")
    for value in (None, 3, ["cpu"], b"cpu"):
        assert "is not a device to run on" in refusal(lambda value=value: resolve_device(value))


@pytest.mark.parametrize(
    "key", ["trainer.init_from", "objective.teacher", "trainer.resume", "data.revision", "data.subset"]
)
def test_a_variable_that_is_not_set_starts_nothing_from_scratch(key: str) -> None:
    assert refusal(lambda: load_config(None, [f"{key}="])).startswith(f"{key}: '' is empty")


@pytest.mark.parametrize("key", ["trainer.init_from", "objective.teacher", "trainer.resume"])
def test_an_empty_place_to_start_from_in_a_file(key: str, tmp_path: Path) -> None:
    group, name = key.split(".")
    (tmp_path / "c.yaml").write_text(f"{group}: {{{name}: ''}}")
    assert refusal(lambda: load_config(tmp_path / "c.yaml")).startswith(f"{key}: '' is empty")


@pytest.mark.parametrize("key", ["data.corpus", "data.tokenizer", "run.name"])
def test_a_name_that_is_not_utf8_is_that_of_the_key(key: str) -> None:
    assert refusal(lambda: load_config(None, [f"{key}=a\udcff"])).startswith(f"{key}: 'a\\udcff' is not UTF-8")


NUMBERS: list[Any] = [
    -1, 0, 1, 2, 3, 7, 10**3, 10**6, 2**31, 1000000007, 2**62, 2**63 - 1, 2**63, 2**64, 10**21, 10**400, -(10**30),
    0.5, 1.0, -0.5, 1e-320, 1e21, 1e308, math.inf, -math.inf, math.nan,
]  # fmt: skip
TEXTS: list[Any] = [
    "",
    "x",
    " ",
    ".",
    "..",
    "/",
    "~",
    "null",
    "true",
    "1e21",
    "a\0b",
    "\udcff",
    "é",
    "${x}",
    "x" * 70_000,
]
OTHERS: list[Any] = [
    None,
    True,
    False,
    [],
    [[]],
    [1],
    ["a"],
    [None],
    {},
    {"name": "x"},
    {"a": 1},
    {"name": None},
    {1: 2},
]
NASTY = [*NUMBERS, *TEXTS, *OTHERS]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(list(known_keys())), st.sampled_from(NASTY), st.booleans())
def test_every_key_takes_a_value_or_refuses_it_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: Any, in_file: bool
) -> None:
    if name == "run.imports" and value == "x":
        return
    start = time.process_time()
    try:
        if in_file:
            group, _, key = name.partition(".")
            path = tmp_path_factory.mktemp("hostile") / "c.yaml"
            path.write_text(dialect.dump({group: {key: value} if key else value}), encoding="utf-8")
            config = load_config(path)
        else:
            config = load_config(None, [f"{name}={inline(value)}"])
        check(config)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1000, text[:2000]
        assert name in text or name.split(".")[0] in text or "not valid YAML" in text, text
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", [name for name, key in known_keys().items() if key.annotation in (int, int | None)])
def test_a_number_that_no_memory_or_time_is_enough_for_is_refused(name: str) -> None:
    for value in (2**63, 10**400, -(2**70)):
        assert name in refusal(lambda value=value: load_config(None, [f"{name}={value}"]))


SIZES = [
    [],
    ["model.tied_embeddings=true", "model.qk_norm=false"],
    ["model.n_kv_heads=2", "model.hidden_dim=48", "model.n_layers=3", "model.dim=32"],
]


@pytest.mark.parametrize("overrides", SIZES)
def test_the_number_of_parameters_is_that_of_the_model(overrides: list[str]) -> None:
    config = load_config(None, overrides)
    tokenizer = ByteTokenizer()
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("meta"))
    assert n_parameters(config.model, tokenizer.vocab_size) == model.n_parameters()


def test_a_model_or_a_batch_that_cannot_fit_is_refused_before_memory_is_asked_for(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hybrid.lm.Transformer", lambda *_: pytest.fail("a model was built"))
        overrides = ["model.dim=1048576", "model.hidden_dim=null", "model.n_layers=100"]
        wide = refusal(lambda: Run.of(configure(tmp_path, *overrides)))
    assert wide.startswith("model.dim: 1048576 with model.n_layers = 100") and "Make the model smaller" in wide
    long = refusal(lambda: Run.of(configure(tmp_path, f"trainer.batch_tokens={2**40}")))
    assert long.startswith("trainer.batch_tokens: 1099511627776 tokens in one forward, with 1 noisy copies")
    monkeypatch.setattr("hybrid.model.build.memory_of", lambda device: 10**7)
    many = refusal(lambda: Run.of(configure(tmp_path, "eval.draws=65536")))
    assert many.startswith("eval.batch_rows: 128 tokens in one forward, with 65536 noisy copies")
    assert not (tmp_path / "tiny").exists()


def test_what_fits_is_not_refused() -> None:
    config, device = load_config().model, torch.device("cpu")
    total = memory_of(device)
    most = total // (4 * n_parameters(config, 257))
    check_weights(config, 257, device, copies=most)
    with pytest.raises(ValueError, match=r"^model\.dim"):
        check_weights(config, 257, device, copies=most + 1)
    check_weights(config, 257, device, copies=2 * most, ranks=2)
    tokens = total // (2 * config.dim * config.n_layers * 3)
    check_batch(config, tokens, 2, "k", device, config.n_layers)
    with pytest.raises(ValueError, match=r"^k: "):
        check_batch(config, tokens + 1, 2, "k", device, config.n_layers)


@pytest.mark.parametrize("value", [None, 3, 1.5, True, "", b"x", ["a"], {"a": 1}, "a\0b", object()])
def test_what_is_no_path(value: Any) -> None:
    assert refusal(lambda: path_of("path", value)).startswith("path: ")
    if value is not None:
        assert "config: " in refusal(lambda: load_config(value))


@pytest.mark.parametrize("overrides", ["trainer.steps=3", None, 3, [3], [None], {"trainer.steps": 3}, [b"a=1"]])
def test_what_are_no_overrides(overrides: Any) -> None:
    refusal(lambda: load_config(None, overrides))


def test_the_specs_are_all_among_the_keys() -> None:
    assert set(SPECS) <= set(known_keys())
