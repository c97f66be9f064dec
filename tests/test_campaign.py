"""A handful of what campaign.py tries at length: kills, and hostile inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Command
from hostile import manners
from hostile_case import Case
from hostile_settings import MODES, configuration, overrides
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

in_process = settings(
    deadline=None, max_examples=15, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.mark.parametrize("draw", [configuration, overrides])
@in_process
@given(data=st.data())
def test_settings_are_taken_or_refused_in_one_line(
    draw, data: st.DataObject, command: Command, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """In this process, and only printed: what is slow or large is left to forks."""
    case: Case = draw(data.draw(st.randoms(note_method_calls=False)))
    folder = tmp_path_factory.mktemp("hostile")
    for change in case.changes:
        change(folder)
    monkeypatch.chdir(folder)
    done = command(case.program, *(MODES[0] if word in MODES else word for word in case.words))
    assert manners(case, done) == [], case.told()


@pytest.mark.slow
def test_a_few_kills_and_hostile_inputs(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests" / "campaign.py", "--kills", "1", "--inputs", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.glob("hybrid-campaign-*")) == []


# The judges themselves -----------------------------------------------------------------------------------------------


class Fake:
    def __init__(self, code: int, err: str, out: str = "") -> None:
        self.code, self.err, self.out = code, err, out


@pytest.mark.parametrize(
    "ended, problem",
    [
        (Fake(0, ""), None),
        (Fake(2, "warning: a\nerror: b\n"), None),
        (Fake(1, 'Traceback (most recent call last):\n  File "/x/hybrid/lm.py", line 3, in load\nKeyError: 1\n'),
         "traceback at hybrid/lm.py:load: KeyError: 1"),
        (Fake(-9, ""), "exit code -9"),
        (Fake(2, ""), "0 error lines in 0 lines, not one at the end"),
        (Fake(2, "error: a\nerror: b\n"), "2 error lines in 2 lines, not one at the end"),
        (Fake(2, "error: a\nmore\n"), "1 error lines in 2 lines, not one at the end"),
        (Fake(2, "error: a\n", "half"), "4 characters on stdout beside an error"),
        (Fake(0, "error: a\n"), "an error line with exit code 0"),
        (Fake(2, f"error: {'x' * 2000}\n"), "a line of 2,007 characters"),
        (Fake(2, "error: \x1b[2J\n"), "control characters on stderr: ['\\x1b']"),
    ],
)  # fmt: skip
def test_how_a_command_must_end(ended: Fake, problem: str | None) -> None:
    assert manners(Case("train.py", []), ended) == ([] if problem is None else [problem])


def test_what_must_be_refused() -> None:
    assert manners(Case("train.py", [], refused=True), Fake(0, "")) == ["was not refused"]
    assert manners(Case("train.py", [], refused=False), Fake(2, "error: a\n")) == ["was refused"]


def test_a_seed_and_a_number_are_a_case() -> None:
    from hostile import KINDS, case_of

    for kind in KINDS:
        cases = [case_of(kind, 0, number) for number in range(20)]
        assert [c.words for c in cases] == [case_of(kind, 0, number).words for number in range(20)]
        assert len({c.told() for c in cases}) > 5
        assert cases[0].told() != case_of(kind, 1, 0).told() or cases[1].told() != case_of(kind, 1, 1).told()
