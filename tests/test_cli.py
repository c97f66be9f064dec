"""Exit codes, one-line errors, and what goes to stderr."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

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
        logging.getLogger("hybrid.data").warning("careful")
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
