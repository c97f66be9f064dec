"""Hostile inputs that are typed: configuration files, overrides, and the options of every command."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path

from hostile_case import FLOATS, INTEGERS, MINE, TEXTS, TINY, YAML, Case, Change, argument, bomb, nested, scalar

from hybrid.config.schema import known_keys
from hybrid.data.corpora import CORPORA
from hybrid.decoding import DECODERS

MODES = ("--print-config", "--dry-run")


def write(name: str, content: str | bytes) -> Change:
    """A file beside the command."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return change


def link(name: str, target: str) -> Change:
    return lambda folder: (folder / name).symlink_to(target)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations


def configuration(rng: random.Random) -> Case:
    """A YAML file: a right one in which a value or two are wrong, or one that is odd as a whole."""
    words = ["--config", "c.yaml", rng.choice(MODES)]
    if rng.random() < 0.65:
        return Case("train.py", words, [write("c.yaml", with_wrong_values(rng))], about="c.yaml with a wrong value")
    name, content = rng.choice(list(DOCUMENTS.items()))
    changes = [write("c.yaml", content(rng) if callable(content) else content)]
    changes += [link("loop.yaml", "loop.yaml"), write("d.yaml", "base: c.yaml\n"), link("zero.yaml", "/dev/zero")]
    return Case("train.py", words, changes, about=f"c.yaml: {name}")


def with_wrong_values(rng: random.Random) -> str:
    """The settings of a small run, some of them replaced, as a file."""
    groups: dict[str, dict[str, str]] = {}
    for setting in TINY:
        name, _, value = setting.partition("=")
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    whole: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.random()
        name = rng.choice([name for name in known_keys() if name != "data.cache_dir"])  # that is written to
        group, _, key = name.partition(".")
        if way < 0.75 and key:
            groups.setdefault(group, {})[key] = scalar(rng)
        elif way < 0.9:
            whole[group] = scalar(rng)
        else:
            groups.setdefault(group, {})[rng.choice(("", "nothere", "1", "[a]", '"\\0"', "é", key[:-1]))] = "1"
    lines = []
    for group, values in groups.items():
        if group in whole:
            continue
        lines.append(f"{group}:")
        lines += [f"  {key}: {value}" for key, value in values.items()]
    return "\n".join([*lines, *(f"{group}: {value}" for group, value in whole.items())]) + "\n"


GOOD = "trainer: {steps: 3}\n"
DOCUMENTS = {
    "empty": "",
    "a comment": "# nothing\n",
    "an alias bomb": bomb(9, 9),
    "an alias bomb in a value": "decoder:\n" + "".join(f"  {line}\n" for line in bomb(9, 9).splitlines()),
    "nested": nested,
    "a nested value": lambda rng: f"decoder: {nested(rng)}\n",
    "random bytes": lambda rng: rng.randbytes(rng.choice((1, 50, 5000))),
    "zeros": b"\0" * 1000,
    "UTF-16": GOOD.encode("utf-16"),
    "a BOM": GOOD.encode("utf-8-sig"),
    "Latin-1": "run: {name: é}\n".encode("latin-1"),
    "CRLF": GOOD.replace("\n", "\r\n"),
    "a control character": "run: {name: a\x07b}\n",
    "a NUL in a name": 'run: {name: "a\\0b"}\n',
    "a NUL in a path": 'data: {corpus: "a\\0b"}\n',
    "a NUL in a tokenizer": 'data: {tokenizer: "a\\0b"}\n',
    "a lone surrogate": 'run: {name: "\\ud800"}\n',
    "two documents": "a: 1\n---\nb: 2\n",
    "a directive": "%YAML 9.9\n---\ntrainer: {steps: 3}\n",
    "a list": "- 1\n- 2\n",
    "a scalar": "trainer\n",
    "a tab": "trainer:\n\tsteps: 3\n",
    "a key twice": "trainer: {steps: 3}\ntrainer: {steps: 4}\n",
    "a key of another type": lambda rng: f"{rng.choice(('1', '1.5', 'true', 'null', '[a]', '{a: 1}', '~'))}: 2\n",
    "a key that is a long text": f"? {'k' * 5000}\n: 1\n",
    "a merge": lambda rng: f"trainer:\n  <<: {scalar(rng)}\n",
    "a base": lambda rng: f"base: {rng.choice(BASES)}\n",
    "imports": lambda rng: f"run:\n  imports: {rng.choice(IMPORTS)}\n",
    "a huge file": "# " + "x" * 5_000_000 + "\n" + GOOD,
    "many keys": "decoder: {name: margin, " + ", ".join(f"k{n}: 1" for n in range(3000)) + "}\n",
    "a corpus of its own": lambda rng: f"data: {{corpus: {embedded(rng)}}}\n",
}
BASES = ["c.yaml", "d.yaml", "loop.yaml", "nothere.yaml", "texts", ".", "''", "null", "[c.yaml]", "{a: 1}", "~nouser/x",
         '"a\\0b"', "mine.txt", "zero.yaml", "../../../../../etc/passwd", "1"]  # fmt: skip
IMPORTS = ["{a: 1}", "[1]", "[[a]]", "[.]", ".", "..", "[os.nothere]", "[null]", "''", "['']", "['a b']", "[a/b]", "é",
           "[train]", "[antigravity.x]", "1", "['..x']", '"a\\0b"', "mine", "[mine.txt]"]  # fmt: skip


def embedded(rng: random.Random) -> str:
    """An embedded corpus with an option of any value, as a mapping of YAML."""
    name = rng.choice([*CORPORA, "nothere", "[1]", "", "null"])
    names = [f.name for f in dataclasses.fields(CORPORA[name])] if name in CORPORA else []
    option = rng.choice([*names, *names, "nothere", "1"])
    return f"{{name: {name}, {option}: {rng.choice([*INTEGERS, *INTEGERS, '1000000000000', *FLOATS, *YAML])}}}"


def overrides(rng: random.Random) -> Case:
    """Words key=value after those of a small run."""
    odd = [_override(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    mode = MODES[0] if any(text.startswith("data.cache_dir") for text in odd) else rng.choice(MODES)  # it is written to
    return Case("train.py", [*TINY, *map(argument, odd), mode], about=f"{argument(odd[0])[:60]!r}")


def _override(rng: random.Random) -> str:
    way = rng.random()
    if way < 0.08:
        return rng.choice(("", "=", "=1", "a", "a=", "trainer", ".=1", "trainer.=1", "a.b.c=1", "trainer.steps.x=1",
                           "trainer..steps=1", "decoder.name.x=1", "é=1", " = ", "--", "-x", "@file",
                           "a\nb=1"))  # fmt: skip
    if way < 0.2:
        name = rng.choice(list(DECODERS))
        option = rng.choice([f.name for f in dataclasses.fields(DECODERS[name])] or ["steps"])
        return f"decoder={{name: {name}, {option}: {rng.choice(FLOATS + INTEGERS + YAML)}}}"
    if way < 0.3:
        return f"data.corpus={embedded(rng)}"
    if way < 0.36:
        return f"run.imports={rng.choice(IMPORTS)}"
    key = known_keys()[rng.choice(list(known_keys()))]
    if key.choices is None and rng.random() < 0.5:
        kind = str(key.annotation)
        values = INTEGERS if "int" in kind else FLOATS if "float" in kind else TEXTS
        return f"{key.name}={rng.choice(values)}"
    return f"{key.name}={scalar(rng)[:100_000]}"


# ---------------------------------------------------------------------------------------------------------------------
# Command lines

SMALL = ["0", "-1", "1", "2", "3", "5", "33", "1000000007", "1e11", "9" * 400, "9223372036854775808", "x", "", "1.5"]
PATHS = ["runs/tiny", "runs", "runs/tiny/checkpoints", "runs/tiny/checkpoints/step-00000004", "nothere", "", ".",
         "/nothere",
         "mine.txt", "texts", "~nosuchuser/x", "runs/tiny/config.yaml", "loop", "x" * 300, "\udcff", "a\nb",
         "/dev/null",
         "/dev/zero", "runs/tiny/"]  # fmt: skip
OUTPUTS = ["out.html", "out.json", "out.md", "out", *MINE, "nofolder/out.html", ".", "", "runs/tiny", "texts", "loop",
           "a\nb.html",
           "runs/tiny/config.yaml", "runs/tiny/metrics.jsonl", "x" * 300 + ".html", "\udcff.html", "link.html",
           "~nosuchuser/x.html", "texts/00.txt", "fifo"]  # fmt: skip
DEVICES = ["cpu", "cpu:5", "cuda", "cuda:99", "meta", "mps", "auto", "", "gpu", "xla", "cpu:-1", "1"]
GAPS = ["the <gap:2> of", "<gap:3>", "<gap:0>", "<gap:-1>", "<gap:99999999999>", "<gap:x>", "a<gap:1>b<gap:1>",
        "\\<gap:2>", "<gap:31> b", "<gap:", "x" * 40 + "<gap:2>"]  # fmt: skip
SPLITS = ["validation", "train", "all", "", "test"]


def _decoder(rng: random.Random, glue: str = " ") -> list[str]:
    """A decoder with options, as words (generate) or as one (evaluate)."""
    name = rng.choice([*DECODERS, *DECODERS, "all", "", "nothere", "margin:"])
    fields = [f.name for f in dataclasses.fields(DECODERS[name])] if name in DECODERS else []
    options = [
        f"{rng.choice([*fields, 'steps', 'name', 'nothere', ''])}{rng.choice(('=', '=', '=', ''))}"
        f"{rng.choice(FLOATS + SMALL + YAML)}"
        for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    return [name, *options] if glue == " " else [name + (":" + glue.join(options) if options else "")]


OPTIONS = {
    "generate.py": {
        "--prompt": lambda rng: [rng.choice([*TEXTS, *GAPS])], "--infill": None, "--batch-size": SMALL,
        "--prompt-file": [*PATHS, "odd.txt"], "--max-new-tokens": SMALL, "--block-size": SMALL,
        "--decoder": _decoder, "--planner": PATHS, "--guidance": FLOATS, "--num-samples": SMALL,
        "--temperature": FLOATS,
        "--top-k": SMALL, "--top-p": FLOATS, "--stop": TEXTS, "--ignore-end-of-text": None, "--seed": INTEGERS,
        "--slide": None, "--no-cache": None, "--json": None, "--trace": OUTPUTS, "--device": DEVICES,
        "--precision": ["auto", "fp32", "bf16", "fp8"], "--nothere": None, "--checkpoint": PATHS,
    },
    "-m hybrid.evaluate": {
        "--block-size": SMALL, "--data": [*PATHS, *TEXTS, "sums", "rows.jsonl", "odd.txt"], "--revision": TEXTS,
        "--format": ["auto", "text", "jsonl", "parquet", "csv", ""],
        "--split": SPLITS, "--length": SMALL, "--draws": SMALL, "--enumerate": None,
        "--orders": lambda rng: _decoder(rng, ","),
        "--batch-rows": SMALL, "--seed": INTEGERS, "--output": OUTPUTS, "--device": DEVICES,
        "--decoders": lambda rng: _decoder(rng, ","), "--judge": PATHS, "--samples": SMALL, "--new-tokens": SMALL,
        "--prompt-tokens": SMALL, "--temperature": FLOATS, "--top-k": SMALL, "--top-p": FLOATS, "--checkpoint": PATHS,
    },
    "-m hybrid.report": {"": PATHS, "--output": OUTPUTS, "--title": TEXTS, "--force": None, "--nothere": None},
    "-m hybrid.sweep": {
        "--folder": PATHS, "--jobs": SMALL, "": ["run.seed=0,1", "objective.block_size=1,4", "run.seed=", "=1,2",
        "run.name=a,b", "trainer.steps=[1", "a.b=1,2", "trainer.steps=9e99,1", "run.seed=1,1", "decoder=margin,p2"],
    },
}  # fmt: skip
START = {
    "generate.py": ["--checkpoint", "runs/tiny", "--max-new-tokens", "4"],
    "-m hybrid.evaluate": ["--checkpoint", "runs/tiny", "--rows", "1", "--draws", "1"],
    "-m hybrid.report": ["runs/tiny"],
    "-m hybrid.sweep": ["--dry-run", "--config", "sweep.yaml"],
}


def command_line(rng: random.Random) -> Case:
    """A right command with some wrong options."""
    program = rng.choice(["generate.py", "generate.py", "-m hybrid.evaluate", "-m hybrid.report", "-m hybrid.sweep"])
    words, options = list(START[program]), OPTIONS[program]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        name = rng.choice(list(options))
        values = options[name]
        words += [name] if name else []
        if values is not None:
            words += values(rng) if callable(values) else [rng.choice(values)]
    odd = rng.choice((b"", b"a\r\nb\r\n", b"\xef\xbb\xbfx\n", b"\xff\xfe", b"\0\0", rng.randbytes(200), b"x" * 40_000))
    changes = [write("odd.txt", odd), write("c.yaml", _right()),
               write("sweep.yaml", _sweep(rng)), link("loop", "loop"), link("link.html", "mine.html"),
               lambda folder: os.mkfifo(folder / "fifo")]  # fmt: skip
    return Case(program, list(map(argument, words)), changes, stdin=odd)


def _right() -> str:
    groups: dict[str, list[str]] = {}
    for setting in TINY:
        name, _, value = setting.partition("=")
        groups.setdefault(name.split(".")[0], []).append(f"{name.split('.')[1]}: {value}")
    return "".join(f"{group}: {{{', '.join(values)}}}\n" for group, values in groups.items())


def _sweep(rng: random.Random) -> str:
    """A sweep of two small runs, in which something is wrong or odd."""
    parts = {
        "config": "c.yaml", "set": "{trainer.steps: 3}", "arms": "{a: {objective.block_size: 1}, b: {optim.lr: 0.1}}",
        "grid": "{run.seed: [0, 1]}", "evaluate": "{rows: 2}",
    }  # fmt: skip
    if rng.random() < 0.8:
        name = rng.choice([*parts, "nothere"])
        inner = rng.choice((scalar(rng), f"{{{rng.choice(list(known_keys()))}: {rng.choice(YAML)}}}",
                            f"{{a: {scalar(rng)}}}",
                            f"{{run.seed: {rng.choice(YAML)}}}", "{'../x': {}}",
                            f"{{rows: {rng.choice(YAML)}}}"))  # fmt: skip
        parts[name] = inner
    return "".join(f"{name}: {value}\n" for name, value in parts.items())
