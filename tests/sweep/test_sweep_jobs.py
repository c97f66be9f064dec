"""Processes side by side: how many at once, what a failure does, and who may write where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hybrid.sweep.jobs import Job, Outcome, last_line, slots, work


def job(tmp_path: Path, name: str, code: str) -> Job:
    return Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.log")


def ignore(job: Job, outcome: Outcome) -> None:
    pass


@pytest.mark.slow
def test_all_are_run_as_many_at_once_as_there_are_slots(tmp_path: Path) -> None:
    """Each job writes when it begins and ends; never more than two are between the two."""
    code = "import time; print(time.time()); time.sleep(0.3); print(time.time())"
    jobs = [job(tmp_path, f"j{i}", code) for i in range(5)]
    outcomes = work(jobs, [{}, {}], ignore)
    assert list(outcomes) == [j.name for j in jobs] and all(o.is_done and o.seconds > 0.25 for o in outcomes.values())
    spans = [[float(line) for line in j.log.read_text().split()] for j in jobs]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_a_failure_stops_no_other_and_is_told(tmp_path: Path) -> None:
    told = []
    jobs = [
        job(tmp_path, "bad", "import sys; print('fine'); print('error: no', file=sys.stderr); print('x'); sys.exit(2)"),
        job(tmp_path, "good", "print('done')"),
    ]
    outcomes = work(jobs, [{}], lambda j, outcome: told.append((j.name, outcome.code)))
    assert told == [("bad", 2), ("good", 0)]
    assert outcomes["bad"].code == 2 and not outcomes["bad"].is_done
    assert last_line(tmp_path / "bad.log") == "error: no" and last_line(tmp_path / "good.log") == "done"
    assert last_line(tmp_path / "none.log") == ""
    (tmp_path / "two.log").write_text("error: of an earlier sweep\nstep 1\nerror: of this one\n")
    assert last_line(tmp_path / "two.log") == "error: of this one"


@pytest.mark.slow
def test_a_log_is_continued_and_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    """A process that an earlier sweep left behind still trains there; the next one must not."""
    log = tmp_path / "a.log"
    log.write_text("before\n")
    first = threading.Thread(target=work_apart, args=(tmp_path,))
    first.start()
    deadline = time.monotonic() + 20
    while "started" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert work([job(tmp_path, "a", "print('second')")], [{}], ignore)["a"] == Outcome(None, 0.0)
    first.join()
    assert log.read_text().split() == ["before", "started"]
    assert work([job(tmp_path, "a", "print('third')")], [{}], ignore)["a"].is_done
    assert log.read_text().split() == ["before", "started", "third"]


def work_apart(tmp_path: Path) -> None:
    """In another process, since signals belong to the main thread."""
    command = "import time; print('started', flush=True); time.sleep(2)"
    code = (
        "import sys; from pathlib import Path; from hybrid.sweep.jobs import *\n"
        f"work([Job('a', [sys.executable, '-c', {command!r}], Path({str(tmp_path / 'a.log')!r}))], [{{}}], print)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_interrupt_is_passed_on_and_raised_when_all_have_ended(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_): print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop); print('started', flush=True); time.sleep(30)"
    )
    jobs = [job(tmp_path, name, code) for name in ("a", "b", "waiting")]
    logs = [j.log for j in jobs[:2]]

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while not all(log.is_file() and "started" in log.read_text() for log in logs) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work(jobs, [{}, {}], ignore)
    assert [log.read_text().split() for log in logs] == [["started", "saved"]] * 2
    assert not jobs[2].log.exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_slots_share_the_cores_and_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert slots(2, 8, 0) == [{}, {}]  # the user knows better
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert slots(1, 8, 4) == [{"OMP_NUM_THREADS": "8"}]
    assert slots(3, 8, 1) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [s["CUDA_VISIBLE_DEVICES"] for s in slots(3, 8, 2)] == ["0", "1", "0"]
    assert slots(4, 2, 0)[0] == {"OMP_NUM_THREADS": "1"}
    jobs = [job(tmp_path, "seen", "import os; print(os.environ['OMP_NUM_THREADS'], 'PATH' in os.environ)")]
    work(jobs, [{"OMP_NUM_THREADS": "3"}], ignore)
    assert jobs[0].log.read_text().split() == ["3", "True"]
