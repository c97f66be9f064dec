"""Hostile inputs that are read: corpora of all sorts, and a trained run of which something is damaged."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import torch
from hostile_case import TINY, Case, Change
from safetensors.torch import load_file, save_file

SENTENCE = "The value of a list is set by its name; é, 日本, and no key exists.\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030")

# ---------------------------------------------------------------------------------------------------------------------
# Corpora


def corpus(rng: random.Random) -> Case:
    """A file or a folder to train on, to evaluate on, or to continue."""
    content, about = _content(rng)
    suffix = rng.choice((".txt", ".txt", ".jsonl", ".jsonl", ".json", ".parquet", ".csv", ".jsonlines", "", ".gz", ".jsonl.gz",
                         ".txt.gz", ".zst", ".bin", ".TXT", ".md", ".npy", ".arrow"))  # fmt: skip
    if rng.random() < 0.6:
        suffix = {"json": ".jsonl", "parquet": ".parquet", "gzip": ".jsonl.gz"}.get(about.split()[0], suffix)
    name = f"odd{suffix}"
    changes: list[Change] = [lambda folder: _put(folder / name, content)]
    if rng.random() < 0.2:
        changes, about, name = [lambda folder: _odd_folder(folder / "odd", name, content)], f"a folder with {about}", "odd"
    way = rng.random()
    if way < 0.1:
        words = ["--checkpoint", "runs/tiny", "--rows", "1", "--draws", "1", "--data", name]
        return Case("-m hybrid.evaluate", words, changes, about=about)
    if way < 0.2:
        words = ["--checkpoint", "runs/tiny", "--prompt-file", name, "--max-new-tokens", "3"]
        return Case("generate.py", words, changes, about=about)
    settings = [f"data.corpus={name}"]
    settings += rng.choice(([], [], ["data.tokenizer=char"], ["data.tokenizer=bpe", "data.vocab_size=300"],
                            [f"data.tokenizer={name}"], ["data.tokenizer=runs/tiny/config.yaml"]))  # fmt: skip
    settings += rng.choice(([], [], [], ["data.format=text"], ["data.format=jsonl"], ["data.format=parquet"]))
    settings += rng.choice(([], [], [], ["data.column=other"], ["data.column="], ["data.validation_fraction=0.5"]))
    return Case("train.py", [*TINY, *settings, "--dry-run"], changes, about=about)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)


def _content(rng: random.Random) -> tuple[bytes | None, str]:
    """What is in a file, and what to call it; None: it is a pipe that nobody writes to."""
    text = SENTENCE * rng.choice((1, 30, 300))
    kind = rng.choice(("json", "json", "json", "text", "bytes", "gzip", "parquet", "parquet", "fifo"))
    if kind == "fifo":
        return (None, "a pipe") if rng.random() < 0.3 else (text.encode(), "text")
    if kind == "text":
        encoding = rng.choice(ENCODINGS)
        return text.encode(encoding), f"text in {encoding}"
    if kind == "bytes":
        odd = (b"", b"\n", b" ", b"\0" * 5000, b"\xff" * 100, b"\r\n" * 100, rng.randbytes(3000), b"x" * 3_000_000,
               b"PK\x03\x04" + rng.randbytes(500), b"\x28\xb5\x2f\xfd" + rng.randbytes(500), text.encode()[:-20] + b"\xc3",
               b"PAR1", b"\x1f\x8b", b"\x93NUMPY\x01\x00", "\ufeff".encode() * 50, text.encode().replace(b"\n", b"\r"))  # fmt: skip
        data = rng.choice(odd)
        return data, f"bytes {data[:8]!r}, {len(data)} of them"
    if kind == "parquet":
        return _parquet(rng)
    rows, about = _json_rows(rng)
    data = rows.encode("utf-8", "surrogatepass")
    if kind == "json":
        return data, f"json {about}"
    data = gzip.compress(data, mtime=0)
    cut = rng.choice((len(data), len(data), len(data) // 2, 5))
    return data[:cut], f"gzip of {cut} of {len(data)} bytes: {about}"


ODD_ROWS = ['{"text": null}', '{"text": 3}', '{"text": ["a"]}', '{"text": {"a": "b"}}', '{"text": "\\ud800"}', '{"text": "\\u0000"}',
            '{"other": "b"}', "{}", "[]", '["a"]', '"a"', "3", "null", "NaN", '{"text": NaN}', '{"text": 1e999}', "{'text': 'a'}",
            '{"text": "a"', '{"text": "a"} {"text": "b"}', '{"text": "a", "text": "b"}', "\ufeff{}", "", "   ", "\0", "\ud800",
            '{"prompt": "a", "completion": "b"}', '{"prompt": "a"}', '{"prompt": "a", "completion": null}', '{"": "a"}',
            '{"text": ""}', '{"text": " "}', '{"text": 2020}', '{"text": "2020-01-01"}', '{"text": true}', "// comment"]  # fmt: skip


def _json_rows(rng: random.Random) -> tuple[str, str]:
    good = [json.dumps({"text": f"{number} {SENTENCE * 3}"}, ensure_ascii=rng.random() < 0.5) for number in range(30)]
    way = rng.choice(("odd", "odd", "odd", "only odd", "deep", "long", "number", "array", "indented", "good", "wide"))
    odd = rng.choice(ODD_ROWS)
    if way == "odd":
        good.insert(rng.choice((0, 0, 7, len(good))), odd)
    elif way == "only odd":
        good = [odd] * 30
    elif way == "deep":
        depth = rng.choice((900, 100_000))
        good.insert(rng.choice((0, 5)), '{"text": "a", "x": ' + "[" * depth + "]" * depth + "}")
        odd = f"{depth} deep"
    elif way == "long":
        good.insert(rng.choice((0, 5)), '{"text": "' + "x" * 20_000_000 + '"}')
        odd = "of 20 MB"
    elif way == "number":
        good.insert(rng.choice((0, 5)), '{"text": "a", "x": ' + "9" * 5000 + "}")
        odd = "with a number of 5,000 digits"
    elif way == "wide":
        good.insert(0, json.dumps({f"column {n}": "a" for n in range(3000)}))
        odd = "of 3,000 columns"
    elif way in ("array", "indented"):
        text = json.dumps([json.loads(row) for row in good], indent=1 if way == "indented" else None)
        return text, f"{way} of rows"
    end = rng.choice(("\n", "\n", "\r\n"))
    return end.join(good) + rng.choice((end, "")), f"rows, {way}: {odd[:30]}"


def _parquet(rng: random.Random) -> tuple[bytes, str]:
    import pyarrow as pa
    from pyarrow import parquet

    texts = [SENTENCE * 3] * 30
    columns = {
        "text": pa.array(texts), "large": pa.array(texts, pa.large_string()), "view": pa.array(texts, pa.string_view()),
        "dictionary": pa.array(texts).dictionary_encode(), "binary": pa.array([t.encode() for t in texts]),
        "integers": pa.array(range(30)), "nulls": pa.nulls(30), "lists": pa.array([[t] for t in texts]),
        "some null": pa.array([*texts[1:], None]), "none": pa.array([], pa.string()), "times": pa.array([0] * 30, pa.timestamp("s")),
    }  # fmt: skip
    kind = rng.choice(list(columns))
    name = rng.choice(("text", "text", "other"))
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({name: columns[kind]}), sink)
    data = bytearray(sink.getvalue().to_pybytes())
    damage = rng.choice(("whole", "whole", "cut", "flipped", "flipped end"))
    if damage == "cut":
        data = data[: rng.randrange(len(data))]
    for _ in range(20 if "flipped" in damage else 0):
        data[rng.randrange(len(data) - 60, len(data)) if "end" in damage else rng.randrange(len(data))] ^= 0x55
    return bytes(data), f"parquet with {name}: {kind}, {damage}"


def _odd_folder(folder: Path, name: str, content: bytes | None) -> None:
    """A folder with a good text, the odd file, and what else may be in one."""
    deep = folder / "/".join("d" * 30)
    deep.mkdir(parents=True)
    (folder / "good.txt").write_text(SENTENCE * 50)
    (deep / "deep.txt").write_text(SENTENCE * 50)
    (folder / "loop").symlink_to(".")
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "gone.txt").symlink_to("nothere")
    (folder / "folder.txt").mkdir()
    (folder / "\udcff.txt").write_text(SENTENCE * 50)
    os.mkfifo(folder / "pipe.txt")
    _put(folder / name, content)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints

ODD_JSON = ["null", "true", "-1", "0", "1e308", "1e999", "NaN", "9" * 5000, '"x"', '"' + "x" * 100_000 + '"', "[]", "{}", "[[1]]",
            "[" * 100_000 + "]" * 100_000, '{"a": null}', '"\\ud800"', "1.5", '"\\u0000"', '"../../x"']  # fmt: skip


def checkpoint(rng: random.Random) -> Case:
    """A command that reads a trained run in which one file is not as it was written."""
    about, change, must_fail = rng.choice((_tensors, _tensors, _json, _json, _json, _any_file, _text))(rng)
    train = [*kills.TRAINED, "trainer.steps=6"]
    program, words = rng.choice((
        ("generate.py", ["--checkpoint", "runs/tiny", "--max-new-tokens", "4"]),
        ("generate.py", ["--checkpoint", "runs/tiny", "--max-new-tokens", "4", "--decoder", "margin", "--json"]),
        ("-m hybrid.evaluate", ["--checkpoint", "runs/tiny", "--rows", "1", "--draws", "1"]),
        ("-m hybrid.report", ["runs/tiny"]),
        ("-m hybrid.report", ["runs/tiny", "--output", "out.md"]),
        ("train.py", train),
        ("train.py", train),
        ("train.py", [*TINY, "run.name=other", "trainer.init_from=runs/tiny", "--dry-run"]),
    ))  # fmt: skip
    reads = "resume" if words is train else program
    return Case(program, words, [change], refused=True if reads in must_fail else None, about=about)


Damage = tuple[str, Change, tuple[str, ...]]
"""What it is called, what it does, and which commands must refuse it."""


def _step(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def seal(folder: Path) -> None:
    """Bring the sizes and hashes of the manifest up to date, so that only what reads the content can tell."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = [file for file in folder.iterdir() if file != path and file.is_file()]
    manifest["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
    path.write_text(json.dumps(manifest))


WRONG_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "infinite": lambda t: torch.full_like(t, float("inf")),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "flat": lambda t: t.reshape(-1)[None],
    "longer": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)]),
    "a number": lambda t: t.reshape(-1)[0].clone() if t.ndim else torch.stack([t, t]),
    "empty": lambda t: t[:0].clone() if t.ndim else t.reshape(1)[:0].clone(),
}


def _tensors(rng: random.Random) -> Damage:
    """Weights, optimizer state or averages of another kind, the manifest sealed again."""
    group = rng.choice(("model", "optimizer", "ema"))
    how = rng.choice([*WRONG_TENSORS, "missing", "unknown", "renamed"])
    which = rng.randrange(1000)

    def change(folder: Path) -> None:
        step = _step(folder / "runs" / "tiny")
        tensors = load_file(step / f"{group}.safetensors")
        name = sorted(tensors)[which % len(tensors)]
        if how in WRONG_TENSORS:
            tensors[name] = WRONG_TENSORS[how](tensors[name])
        elif how == "unknown":
            tensors["unknown"] = torch.ones(3)
        else:
            tensor = tensors.pop(name)
            if how == "renamed":
                tensors[f"{name}x"] = tensor
        save_file(tensors, step / f"{group}.safetensors")
        seal(step)

    read_by = {"model": ("resume",), "optimizer": ("resume",), "ema": ("resume", "generate.py", "-m hybrid.evaluate")}
    return f"{group}.safetensors: tensor {which} {how}, sealed", change, read_by[group]


def _json(rng: random.Random) -> Damage:
    """A value of a JSON file, or all of it, of another type."""
    name = rng.choice(("state.json", "state.json", "manifest.json", "environment.json", "eval.json", "eval.json",
                       "metrics.jsonl", "metrics.jsonl", "tokenizer_kind.json"))  # fmt: skip
    odd = rng.choice(ODD_JSON)
    inner, whole, sealed = rng.randrange(10**6), rng.random() < 0.25, rng.random() < 0.8

    def change(folder: Path) -> None:
        path = sorted((folder / "runs" / "tiny").rglob(name))[-1]
        lines = path.read_text().splitlines() if name.endswith("l") else [path.read_text()]
        number = inner % len(lines)
        lines[number] = odd if whole else _retyped(json.loads(lines[number]), inner, odd)
        path.write_text("\n".join(lines) + "\n")
        if sealed and (path.parent / "manifest.json").is_file() and path.name != "manifest.json":
            seal(path.parent)

    where = "all of it" if whole else f"value {inner}"
    return f"{name}: {where} {odd[:20]}{', sealed' if sealed else ''}", change, ()


def _retyped(value: Any, number: int, odd: str) -> str:
    """The JSON text of `value` with one of its parts replaced by `odd`, or removed."""
    places: list[tuple[Any, Any]] = []

    def visit(inner: Any) -> None:
        items = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, below in list(items):
            places.append((inner, key))
            visit(below)

    visit(value)
    if not places:
        return odd
    holder, key = places[number % len(places)]
    if number % 7 == 0:
        del holder[key]
        return json.dumps(value)
    holder[key] = "@odd@"
    return json.dumps(value).replace('"@odd@"', odd)


def _any_file(rng: random.Random) -> Damage:
    """A file of the run that is gone, cut, altered, or something else."""
    which, how = rng.randrange(1000), rng.choice(("gone", "cut", "empty", "flipped", "a folder", "bytes", "swapped", "a loop"))
    sealed, noise = rng.random() < 0.5, rng.randbytes(200)

    def change(folder: Path) -> None:
        files = sorted(path for path in (folder / "runs" / "tiny").rglob("*") if path.is_file())
        path, other = files[which % len(files)], files[(which * 7 + 1) % len(files)]
        data = path.read_bytes()
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a loop":
            path.symlink_to(path.name)
        elif how == "swapped":
            shutil.copyfile(other, path) if other.exists() else path.write_bytes(b"")
        elif how != "gone":
            flipped = bytearray(data)
            for place in range(which % 13, len(data), max(len(data) // 5, 1)):
                flipped[place] ^= 0xFF
            path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "flipped": bytes(flipped), "bytes": noise}[how])
        if sealed and path.name != "manifest.json" and (path.parent / "manifest.json").is_file():
            seal(path.parent)

    return f"file {which} {how}{', sealed' if sealed else ''}", change, ()


def _text(rng: random.Random) -> Damage:
    """Pointers, settings and lines of metrics that are not what was written."""
    name, content = rng.choice((
        ("checkpoints/latest", "step-99999999\n"), ("checkpoints/latest", ""), ("checkpoints/latest", "../../../mine.txt"),
        ("checkpoints/latest", "\0"), ("checkpoints/best", "step-00000004"), ("checkpoints/best", "step-00000004\nnan\n"),
        ("checkpoints/best", "x" * 100_000), ("config.yaml", ""), ("config.yaml", "- 1\n"), ("config.yaml", "model: {dim: 99999999999}\n"),
        ("config.yaml", "data: {corpus: '', tokenizer: nothere}\n"), ("config.yaml", "model: {dim: 16, n_heads: 0}\n"),
        ("metrics.jsonl", ""), ("metrics.jsonl", '{"step": 1, "time": 0'), ("metrics.jsonl", '{"step": 3{"step": 41}\n'),
        ("metrics.jsonl", '{"step": 1, "time": 0, "val/nelbo": "x"}\n'), ("metrics.jsonl", '{"step": -5, "time": NaN}\n' * 3),
        ("metrics.jsonl", '{"step": 1e400, "time": 0}\n'), ("metrics.jsonl", "[" * 200_000 + "\n"), ("eval.json", "{}"),
        ("eval.json", '{"results": []}'), ("eval.json", '{"results": [{}]}'), ("eval.json", '{"results": null}'), ("eval.json", "[]"),
    ))  # fmt: skip
    return f"{name}: {content[:40]!r}", lambda folder: _write(folder / "runs" / "tiny" / name, content), ()


def _write(path: Path, content: str) -> None:
    path.write_text(content)
