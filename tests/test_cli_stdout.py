"""What is printed is not lost, and neither is the page of a trace, whatever becomes of stdout."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def generate(trained: Path, *words: object, environment: dict[str, str], **options) -> subprocess.CompletedProcess:
    script = [sys.executable, str(ROOT / "generate.py"), "--checkpoint", str(trained), "--max-new-tokens", "8"]
    return subprocess.run([*script, *map(str, words)], stderr=subprocess.PIPE, env=environment, **options)


def test_what_stdout_cannot_encode_is_escaped(environment_of_a_child: dict[str, str]) -> None:
    """Once, with a warning, in every command: it is `cli.run` that sees to it."""
    code = "import sys; from hybrid import cli; sys.exit(cli.run(lambda: print('日本 x é\\n語')))"
    environment = {**environment_of_a_child, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0 and done.stdout == "\\u65e5\\u672c x é\n\\u8a9e\n".encode("latin-1")
    (warning,) = done.stderr.decode().splitlines()
    assert warning.startswith("warning: stdout: its encoding (iso8859-1) lacks some characters")


def full(path: Path) -> int:
    """A file that cannot grow: more than a page of bytes, and as long as the process may write any."""
    path.write_bytes(bytes(1 << 20))
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_full_stdout_does_not_lose_the_trace(
    words: list[str], trained: Path, tmp_path: Path, environment_of_a_child: dict[str, str]
) -> None:
    stdout = full(tmp_path / "stdout")
    words = [*words, "--trace", str(tmp_path / "page.html")]
    done = generate(trained, *words, environment=environment_of_a_child, stdout=stdout, preexec_fn=limited)
    os.close(stdout)
    *_, wrote, error = done.stderr.decode().splitlines()
    assert done.returncode == 2 and error == "error: File too large"
    assert wrote == f"wrote {tmp_path / 'page.html'}" and (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_lose_the_trace(
    trained: Path, tmp_path: Path, environment_of_a_child: dict[str, str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    words = ["--trace", tmp_path / "page.html"]
    done = generate(trained, *words, environment=environment_of_a_child, stdout=write)
    os.close(write)
    assert done.returncode == 141 and "Traceback" not in done.stderr.decode()
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_closed_stdout_is_no_traceback(trained: Path, environment_of_a_child: dict[str, str]) -> None:
    done = generate(trained, environment=environment_of_a_child, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0 and "tokens/s" in done.stderr.decode().splitlines()[-1]
