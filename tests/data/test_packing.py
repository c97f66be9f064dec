"""The cache of packed tokens: what it depends on, and that it is whole whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_corpus import cache_folders, corpus_file, prepared, texts_of, write_jsonl  # noqa: F401 (a fixture)

from hybrid.data.config import DataConfig
from hybrid.data.preparing import prepare
from hybrid.data.tokenizers import ByteTokenizer, SubwordTokenizer


def test_a_hit_builds_nothing_and_other_row_lengths_share_it(tmp_path, corpus: str, monkeypatch) -> None:
    first = prepared(tmp_path, corpus=corpus)
    monkeypatch.setattr("hybrid.data.preparing.build", lambda *_: pytest.fail("built again"))
    second = prepared(tmp_path, corpus=corpus, seq_len=32, document_mask=True)
    assert second.train.tokens.tolist() == first.train.tokens.tolist()
    assert isinstance(second.train.tokens, np.memmap)
    assert second.train.tokens.dtype == np.uint16
    assert cache_folders(tmp_path) == [first.description["fingerprint"]]


def test_everything_that_matters_changes_the_fingerprint(tmp_path, corpus: str) -> None:
    tokenizer = tmp_path / "saved"
    SubwordTokenizer.train(texts_of(9), 270).save(tokenizer)
    settings = [
        {},
        {"validation_fraction": 0.2},
        {"tokenizer": "char"},
        {"tokenizer": "bpe", "vocab_size": 300},
        {"tokenizer": "bpe", "vocab_size": 310},
        {"tokenizer": str(tokenizer / "tokenizer.json")},
    ]
    made = [prepared(tmp_path, corpus=corpus, **setting) for setting in settings]
    write_jsonl(Path(corpus), [{"text": text} for text in texts_of(150)])
    made.append(prepared(tmp_path, corpus=corpus))
    assert len({data.description["fingerprint"] for data in made}) == len(made) == len(cache_folders(tmp_path))
    assert made[0].description["corpus_sha256"] != made[-1].description["corpus_sha256"]
    assert made[0].description["corpus_sha256"] == made[2].description["corpus_sha256"]
    same = prepared(tmp_path, corpus=corpus, vocab_size=999)  # bytes have no vocab_size
    assert same.description == made[-1].description
    json.dumps(same.description)


DAMAGES = {
    "meta is missing": lambda folder: (folder / "meta.json").unlink(),
    "meta is cut": lambda folder: (folder / "meta.json").write_text('{"splits": '),
    "tokens are missing": lambda folder: (folder / "train.bin").unlink(),
    "tokens are cut": lambda folder: os.truncate(folder / "train.bin", 100),
    "tokens are other": lambda folder: (folder / "train.bin").write_bytes(bytes((folder / "train.bin").stat().st_size)),
    "tokenizer is missing": lambda folder: (folder / "tokenizer" / "tokenizer_kind.json").unlink(),
    "all is missing": lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(tmp_path, corpus: str, damage: str) -> None:
    first = prepared(tmp_path, corpus=corpus)
    expected = first.train.tokens.tolist()
    DAMAGES[damage](tmp_path / "cache" / first.description["fingerprint"])
    second = prepared(tmp_path, corpus=corpus)
    assert second.train.tokens.tolist() == expected
    assert cache_folders(tmp_path) == [first.description["fingerprint"]]  # nothing is left over


def test_a_build_that_fails_leaves_nothing(tmp_path, corpus: str, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybrid.data.packing._Array.write", full)
    with pytest.raises(ValueError, match=r"data.cache_dir: .*No space left on device.*free some space"):
        prepared(tmp_path, corpus=corpus)
    assert cache_folders(tmp_path) == []


BUILD = """
import sys
from hybrid.data import preparing
assert not {"datasets", "tokenizers"} & set(sys.modules), "imported before they are needed"
print("ready", flush=True)
sys.stdin.readline()
config = preparing.DataConfig(corpus=sys.argv[1], cache_dir=sys.argv[2], seq_len=16, tokenizer="bpe", vocab_size=300)
print(preparing.prepare(config).train.tokens.sum())
"""


@pytest.mark.slow
def test_two_processes_at_once(tmp_path, corpus: str) -> None:
    command = [sys.executable, "-c", BUILD, corpus, str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(cache_folders(tmp_path)) == 1


def test_the_loser_of_a_race_takes_what_the_winner_built(tmp_path, corpus: str, monkeypatch) -> None:
    """The winner's rename falls between the loser's look into the cache and its own rename."""
    save = ByteTokenizer.save
    winner = []

    def meanwhile(self, folder) -> None:
        monkeypatch.setattr(ByteTokenizer, "save", save)
        fingerprint = prepared(tmp_path, corpus=corpus).description["fingerprint"]
        winner.append((tmp_path / "cache" / fingerprint / "train.bin").stat().st_ino)
        save(self, folder)

    monkeypatch.setattr(ByteTokenizer, "save", meanwhile)
    data = prepared(tmp_path, corpus=corpus)
    assert cache_folders(tmp_path) == [data.description["fingerprint"]]
    assert (tmp_path / "cache" / data.description["fingerprint"] / "train.bin").stat().st_ino == winner[0]


def test_the_environment_names_the_cache(tmp_path, corpus: str, monkeypatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    data = prepare(DataConfig(corpus=corpus, seq_len=16))
    assert cache_folders(tmp_path) == [data.description["fingerprint"]]


BUILD_AND_WAIT = """
import sys, time
from pathlib import Path
from hybrid.data import preparing
from hybrid.data import packing
def wait(folder, *_):
    (folder / "train.bin").write_bytes(bytes(1000))
    print("ready", flush=True)
    time.sleep(60)
packing._pack = wait
preparing.prepare(preparing.DataConfig(corpus=sys.argv[1], cache_dir=sys.argv[2], seq_len=16))
"""


@pytest.mark.slow
def test_what_a_killed_process_was_building_is_removed_by_the_next(tmp_path, corpus: str) -> None:
    command = [sys.executable, "-c", BUILD_AND_WAIT, corpus, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            first = prepared(tmp_path, corpus=corpus, tokenizer="char").description["fingerprint"]
            (building,) = set(cache_folders(tmp_path)) - {first}  # still at work, so left alone
            second = prepared(tmp_path, corpus=corpus).description["fingerprint"]  # the same, by another process
            assert set(cache_folders(tmp_path)) == {building, first, second}
        finally:
            process.kill()
    prepared(tmp_path, corpus=corpus)  # in the cache already: it looks all the same
    assert set(cache_folders(tmp_path)) == {first, second}


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path, corpus: str, monkeypatch) -> None:
    """It would be kept under the name of what it was before."""
    save = ByteTokenizer.save

    def meanwhile(self, folder) -> None:
        with open(corpus, "a") as file:
            file.write('{"text": "one more"}\n')
        save(self, folder)

    monkeypatch.setattr(ByteTokenizer, "save", meanwhile)
    with pytest.raises(ValueError, match=r"data.corpus: '.*corpus.jsonl' .*changed while it was read; start again"):
        prepared(tmp_path, corpus=corpus)
    assert cache_folders(tmp_path) == []


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path, monkeypatch) -> None:
    for i, text in enumerate(texts_of(9)):
        (tmp_path / f"{i}.txt").write_text(text)
    save = ByteTokenizer.save

    def meanwhile(self, folder) -> None:
        (tmp_path / "5.txt").unlink()
        save(self, folder)

    monkeypatch.setattr(ByteTokenizer, "save", meanwhile)
    with pytest.raises(ValueError, match=r"data.corpus: .*5.txt: No such file or directory"):
        prepared(tmp_path, corpus=str(tmp_path / "*.txt"))


def test_without_a_home_folder_the_cache_must_be_named(tmp_path, corpus: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.expanduser", str)  # what it does for an unknown user
    monkeypatch.delenv("HYBRID_CACHE")
    with pytest.raises(ValueError, match=r"data.cache_dir: '~/.cache/hybrid': .*no such home folder.*HYBRID_CACHE"):
        prepare(DataConfig(corpus=corpus, seq_len=16))
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    prepare(DataConfig(corpus=corpus, seq_len=16))


PEAK = """
import resource, sys
import datasets, tokenizers
from hybrid.data import preparing
small, large, cache = sys.argv[1:]
def peak(corpus, tokenizer):
    preparing.prepare(preparing.DataConfig(
        corpus=corpus, cache_dir=cache, seq_len=4, tokenizer=tokenizer, vocab_size=300, validation_fraction=0.5
    ))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = max(peak(small, tokenizer) for tokenizer in ("byte", "bpe"))  # all that a small one needs
print(peak(large, "byte") - before, peak(large, "bpe") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_one_long_row_needs_a_sane_multiple_of_its_size(tmp_path) -> None:
    """Bytes of memory for a byte of text: were all tokens in a list at once, 23 for bytes and 260 for byte pairs."""
    rows = [{"text": text} for text in texts_of(9)]
    small = write_jsonl(tmp_path / "small.jsonl", rows)
    text = "the cat sat on the mat, \n" * 100_000
    large = write_jsonl(tmp_path / "large.jsonl", [{"text": text}, *rows])
    command = [sys.executable, "-W", "ignore", "-c", PEAK, small, large, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    in_bytes, in_pairs = map(int, done.stdout.split())
    assert in_bytes < 12 * len(text)
    assert in_pairs < 120 * len(text)
