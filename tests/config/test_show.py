"""Writing a configuration: the dump, hparams, `--help`; and that every key is documented and read."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import Config, describe, differences, flatten, load_config, parse_options, to_yaml
from hybrid.config.schema import BACKENDS, SPECS, Key, groups, known_keys, table
from hybrid.config.show import inline
from hybrid.options import type_name

REPO = Path(__file__).parents[2]
KEYS = list(known_keys().values())


def test_the_dump_loads_as_the_same_config(tmp_path: Path) -> None:
    config = load_config(None, ["decoder={name: margin, steps: 8}", "objective.block_size=[1,8]", "run.name=1e3"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert to_yaml(load_config(path)) == to_yaml(config)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).filter(
    lambda text: "${" not in text and text != "???"
)


def values(key: Key) -> st.SearchStrategy[Any]:
    """Values that a key takes."""
    if key.name == "run.name":
        return TEXTS.filter(bool)
    if key.name in SPECS or key.name == "run.imports":
        return st.just(key.default)
    if key.choices is not None:
        return st.sampled_from(key.choices)
    kinds = {
        "int": st.integers(),
        "float": st.floats(allow_nan=False),
        "bool": st.booleans(),
        "str": TEXTS,
        "list of int": st.lists(st.integers(), max_size=4),
        "null": st.none(),
        "any": st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), TEXTS), st.lists, max_leaves=4),
    }
    return st.one_of([kinds[name] for name in type_name(key.annotation).split(" or ")])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_dump_loads_as_the_same_config(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    config = load_config()
    chosen = data.draw(st.lists(st.sampled_from(KEYS), max_size=6, unique_by=lambda key: key.name))
    overrides = []
    for key in chosen:
        value = data.draw(values(key), label=key.name)
        overrides.append(f"{key.name}={inline(value)}")
        holder: Any = config
        *path, last = key.name.split(".")
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, last, copy.deepcopy(value))
    assert load_config(None, overrides, checked=False) == config
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path, checked=False) == config


@pytest.mark.parametrize("name", ["a\x85b", "\x85", "a\u2028b", "\u2029", "a\nb", "é", "\ufeff"])
def test_line_breaks_of_unicode_are_kept(name: str, tmp_path: Path) -> None:
    config = load_config()
    config.run.name = name
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml", checked=False).run.name == name


def test_flatten_and_differences() -> None:
    a = load_config()
    b = load_config(None, ["decoder={name: margin, steps: 8}", "objective.block_size=[1,8]", "trainer.minutes=2"])
    assert all(isinstance(value, (bool, int, float, str)) for value in flatten(b).values())
    assert flatten(b)["objective.block_size"] == "[1, 8]"
    assert flatten(b)["decoder"] == "margin" and flatten(b)["decoder.steps"] == 8
    assert flatten(a)["trainer.minutes"] == "null"
    assert differences(a, a) == {}
    assert differences(a, b) == {
        "decoder": ("first_hitting", "margin"),
        "decoder.steps": (None, 8),
        "objective.block_size": (8, [1, 8]),
        "trainer.minutes": (None, 2.0),
    }


def test_parse_options() -> None:
    assert parse_options(["steps=8", "threshold=0.9", "mode=fast"]) == {"steps": 8, "threshold": 0.9, "mode": "fast"}
    with pytest.raises(ValueError, match=r"decoder: option 'steps' is not name=value"):
        parse_options(["steps"])


def test_help_lists_every_key_and_every_entry() -> None:
    text = describe()
    for key in KEYS:
        assert f"  {key.name}={inline(key.default)}" in text
        assert key.doc.split()[0] in text
    for address in (*SPECS.values(), BACKENDS):
        for name in table(address):
            assert f"\n      {name}" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_importing_the_config_is_quick() -> None:
    heavy = ["datasets", "tokenizers", "tensorboard", "matplotlib", "pandas", "xformers"]
    script = (
        "import sys; from hybrid.config import describe; describe(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------------------
# Every key is documented, and read


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_doc(key: Key) -> None:
    assert key.doc and "\n" not in key.doc
    if key.choices is not None:
        assert key.default in key.choices


@dataclass
class Reads:
    """The keys that a source text reads, found without running it.

    `x.steps` counts for a group if x is known to hold it: named like the group (`config.trainer.steps`), annotated with
    its class, assigned from such (`t = config.trainer`), the `config` of an object named like the group
    (`model.config.dim`), or `self` in the class itself. Writing a key is not reading it.
    """

    keys: set[str]

    @classmethod
    def of(cls, source: str) -> Reads:
        tree = ast.parse(source)
        found: set[str] = set()
        for group in groups():
            class_name = type(getattr(Config(), group)).__name__
            holders = _holders(tree, group, class_name)
            own = [
                node
                for c in ast.walk(tree)
                if isinstance(c, ast.ClassDef) and c.name == class_name
                for node in ast.walk(c)
            ]
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = _last(node.value)
                    if owner in holders or (owner == "self" and node in own) or _is_config_of(node.value, group):
                        found.add(f"{group}.{node.attr}")
                    if node.attr == group == "decoder" and owner in ("config", "cfg"):
                        found.add("decoder")
        return cls(found)


def _last(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_config_of(node: ast.AST, group: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "config" and _last(node.value) == group


def _holders(tree: ast.AST, group: str, class_name: str) -> set[str]:
    """Names in this file that hold the group."""
    holders = {group, f"{group}_config"}
    for node in ast.walk(tree):
        target = (
            node.arg if isinstance(node, ast.arg) else _last(node.target) if isinstance(node, ast.AnnAssign) else ""
        )
        annotation = node.annotation if isinstance(node, (ast.arg, ast.AnnAssign)) else None
        if annotation is not None and class_name in [_last(part) for part in ast.walk(annotation)]:
            holders.add(target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                paired = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if paired else [(target, node.value)]  # pyright: ignore
                holders |= {_last(name) for name, value in pairs if _last(value) in holders}
    return holders - {""}


def test_reads_are_told_from_writes_and_namesakes() -> None:
    assert "trainer.steps" in Reads.of("print(config.trainer.steps)").keys
    assert "trainer.steps" in Reads.of("t, o = config.trainer, config.optim\nprint(t.steps)").keys
    assert "trainer.steps" in Reads.of("def f(c: TrainerConfig | None):\n    return c.steps").keys
    assert "model.dim" in Reads.of("model.config.dim").keys
    assert "model.dim" in Reads.of("class ModelConfig:\n    def f(self): return self.dim").keys
    assert "decoder" in Reads.of("build(DECODERS, self.config.decoder, 'decoder')").keys
    assert "trainer.steps" not in Reads.of("config.trainer.steps = 3").keys
    assert "trainer.steps" not in Reads.of("class A:\n    steps: int = 3\n    def f(self): return self.steps").keys
    assert "trainer.steps" not in Reads.of("decoder.steps; view.steps; config.optim.steps").keys


@pytest.mark.slow
def test_every_key_is_read() -> None:
    """By the code that does the work: what hybrid/config reads to check, merge or print does not count."""
    files = [file for file in (REPO / "hybrid").rglob("*.py") if (REPO / "hybrid" / "config") not in file.parents]
    files += [file for file in (REPO / "train.py", REPO / "generate.py") if file.exists()]
    read = set().union(*(Reads.of(file.read_text(encoding="utf-8")).keys for file in files))
    elsewhere = {"run.imports"}  # loading itself imports them
    assert sorted(set(known_keys()) - read - elsewhere) == []
