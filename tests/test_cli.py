"""Exit codes, one-line errors, and what goes to stderr."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, Command

from hybrid import cli


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, ours, show = logging.getLogger(), logging.getLogger("hybrid"), warnings.showwarning
    handlers, levels = root.handlers[:], (root.level, ours.level)
    # basicConfig(force=True) would close pytest's own handlers.
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    warnings.showwarning = show


def raises(error: BaseException) -> int:
    def main() -> None:
        raise error

    return cli.run(main)


def test_success_and_the_code_of_main() -> None:
    assert cli.run(lambda: None) == 0
    assert cli.run(lambda: 3) == 3


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("trainer.steps: 'x' is a str"), "error: trainer.steps: 'x' is a str"),
        (ValueError("one\n  two"), "error: one two"),
        (ValueError(), "error: ValueError"),
        (FileNotFoundError(2, "No such file or directory", "p.txt"), "error: p.txt: No such file or directory"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (OSError("odd"), "error: odd"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYBRID_TRACEBACK", raising=False)
    assert raises(error) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{line}\n")


def test_the_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"):
        raises(ValueError("bad"))


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert raises(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError):
        raises(RuntimeError("a defect"))
    with pytest.raises(SystemExit):
        raises(SystemExit(2))


def test_log_lines_and_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        logging.getLogger("hybrid.model.attention").info("attention: %s", "sdpa")
        logging.getLogger("hybrid.data.preparing").warning("careful")
        logging.getLogger("noisy.library").info("chatter")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("block_size 4 is not\n what was trained", stacklevel=1)

    # catch_warnings puts showwarning back when it ends, so the order of the two matters as in a script.
    assert cli.run(main) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "attention: sdpa",
        "warning: careful",
        "warning: block_size 4 is not what was trained",
    ]


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom hybrid import cli\nsys.exit(cli.run(lambda: [print('x' * 9999) for _ in range(99)] and 0))"
    )
    (tmp_path / "talk.py").write_text(script)
    command = f"{sys.executable} {tmp_path / 'talk.py'} | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "141"
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# Signals


STOPS = [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
COMMANDS = [
    ("train.py",),
    ("generate.py", "--checkpoint", "x"),
    ("-m", "hybrid.evaluate", "--checkpoint", "x"),
    ("-m", "hybrid.sweep", "--config", "x"),
    ("-m", "hybrid.report", "x"),
    ("-m", "hybrid.bench", "train"),
]


def stopped(
    words: Sequence[object], marker: Path, kind: signal.Signals, environment: dict[str, str]
) -> tuple[int, str]:
    """Exit code and stderr of a process that gets a signal when `marker` is there."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not marker.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert marker.exists(), process.communicate()
    process.send_signal(kind)
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize("kind, word, code", STOPS)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-2] if "-m" in words else words[0])
def test_a_command_that_is_stopped_while_it_imports_says_one_word(
    words: tuple[str, ...], kind: signal.Signals, word: str, code: int, tmp_path: Path,
    environment_of_a_child: dict[str, str],
) -> None:  # fmt: skip
    """In the middle of the import of torch, for which a module stands here that swallows what is raised in it."""
    source = (
        f"import pathlib, time\ntry:\n    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    for _ in range(600):\n        time.sleep(0.1)\n"  # one long one misses a signal just before it
        "except BaseException:\n    raise RuntimeError('half imported')\n"
    )
    for name in ("torch", "numpy", "yaml"):
        (tmp_path / f"{name}.py").write_text(source)
    path = f"{tmp_path}:{ROOT}"
    found = stopped(words, tmp_path / "begun", kind, {**environment_of_a_child, "PYTHONPATH": path})
    assert found == (code, f"{word}\n")


@pytest.mark.parametrize("kind, word, code", STOPS)
def test_a_command_that_is_stopped_outside_of_the_loop_leaves_nothing_half_written(
    kind: signal.Signals, word: str, code: int, tmp_path: Path, environment_of_a_child: dict[str, str]
) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        "import os, pathlib, sys, time\nfrom hybrid import cli\nfrom hybrid.storage.folders import new_folder\n"
        "def main():\n"
        f"    with new_folder(pathlib.Path({str(tmp_path / 'model')!r})) as folder:\n"
        "        (folder / 'half.txt').write_text('half')\n"
        f"        pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "        time.sleep(60)\n"
        "sys.exit(cli.run(main))\n"
    )
    environment = {**environment_of_a_child, "PYTHONPATH": str(ROOT)}
    assert stopped([script], tmp_path / "begun", kind, environment) == (code, f"{word}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "write.py"]


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert cli.run(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What a library says of a damaged file may hold its bytes."""

    def main() -> None:
        logging.getLogger("hybrid").warning("a\x0e\tb\x9b2J")
        raise ValueError("file \x1b[2J\x0e is\nbroken")

    assert cli.run(main) == cli.BAD_INPUT
    assert capsys.readouterr().err == "warning: a\\x0e\tb\\x9b2J\nerror: file \\x1b[2J\\x0e is broken\n"


def test_an_error_of_any_length_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    assert raises(ValueError("data.corpus: " + "x" * 64_019)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: data.corpus: xxx") and line.endswith("... (64,039 characters)\n")
    assert len(line) < 2_001


@pytest.mark.parametrize(
    "words",
    [
        ("generate.py", "--checkpoint", ""),
        ("generate.py", "--checkpoint", "x", "--trace", ""),
        ("generate.py", "--checkpoint", "x", "--prompt-file", ""),
        ("generate.py", "--checkpoint", "x", "--planner", ""),
        ("train.py", "--config", ""),
        ("evaluate", "--checkpoint", "x", "--data", ""),
        ("evaluate", "--checkpoint", "x", "--output", ""),
        ("evaluate", "--checkpoint", "x", "--decoders", "all", "--judge", ""),
        ("sweep.__main__", "--config", "x", "--folder", ""),
        ("report.__main__", "x", "--output", ""),
        ("bench.__main__", "all", "--json", ""),
    ],
    ids=" ".join,
)
def test_a_variable_that_is_not_set_is_no_path(words: tuple[str, ...], command: Command) -> None:
    *_, name, _ = words
    assert f"{name}: '' is empty (a variable of the shell that is not set?)" in command(*words).error


def test_a_folder_of_runs_that_is_empty_is_not_the_current_one(command: Command) -> None:
    assert "RUN: '' is empty" in command("report.__main__", "runs", "").error
