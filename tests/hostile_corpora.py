"""Hostile inputs that are read: files and folders of text, in all sorts of formats and states."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

from hostile_case import TINY, Case, Change

SENTENCE = "The value of a list is set by its name; é, 日本, and no key exists.\n"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030")


def corpus(rng: random.Random) -> Case:
    """A file or a folder to train on, to evaluate on, or to continue."""
    content, about = _content(rng)
    suffix = rng.choice((".txt", ".txt", ".jsonl", ".jsonl", ".json", ".parquet", ".csv", ".jsonlines", "", ".gz",
                         ".jsonl.gz",
                         ".txt.gz", ".zst", ".bin", ".TXT", ".md", ".npy", ".arrow"))  # fmt: skip
    if rng.random() < 0.6:
        suffix = {"json": ".jsonl", "parquet": ".parquet", "gzip": ".jsonl.gz"}.get(about.split()[0], suffix)
    name = f"odd{suffix}"
    changes: list[Change] = [lambda folder: _put(folder / name, content)]
    if rng.random() < 0.2:
        changes, about, name = (
            [lambda folder: _odd_folder(folder / "odd", name, content)],
            f"a folder with {about}",
            "odd",
        )
    way = rng.random()
    if way < 0.1:
        words = ["--checkpoint", "runs/tiny", "--rows", "1", "--draws", "1", "--data", name]
        return Case("-m hybrid.evaluate", words, changes, about=about)
    if way < 0.2 and content is not None and name != "odd":  # to wait for what a pipe will bring is right
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
               b"PK\x03\x04" + rng.randbytes(500), b"\x28\xb5\x2f\xfd" + rng.randbytes(500),
               text.encode()[:-20] + b"\xc3",
               b"PAR1", b"\x1f\x8b", b"\x93NUMPY\x01\x00", "\ufeff".encode() * 50, text.encode().replace(b"\n",
               b"\r"))  # fmt: skip
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


ODD_ROWS = ['{"text": null}', '{"text": 3}', '{"text": ["a"]}', '{"text": {"a": "b"}}', '{"text": "\\ud800"}',
            '{"text": "\\u0000"}',
            '{"other": "b"}', "{}", "[]", '["a"]', '"a"', "3", "null", "NaN", '{"text": NaN}', '{"text": 1e999}',
            "{'text': 'a'}",
            '{"text": "a"', '{"text": "a"} {"text": "b"}', '{"text": "a", "text": "b"}', "\ufeff{}", "", "   ", "\0",
            "\ud800",
            '{"prompt": "a", "completion": "b"}', '{"prompt": "a"}', '{"prompt": "a", "completion": null}', '{"": "a"}',
            '{"text": ""}', '{"text": " "}', '{"text": 2020}', '{"text": "2020-01-01"}', '{"text": true}',
            "// comment"]  # fmt: skip


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
        "some null": pa.array([*texts[1:], None]), "none": pa.array([], pa.string()), "times": pa.array([0] * 30,
        pa.timestamp("s")),
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
