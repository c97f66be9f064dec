"""Run a command: errors in one line, exit codes, and logging to stderr (stdout is for results).

    if __name__ == "__main__":
        sys.exit(cli.run(main))

Exit codes: 0 done, 2 bad input (ValueError, or a file that cannot be read or written), 130 interrupted (Ctrl-C), 141
the reader of stdout went away, 143 terminated (SIGTERM). `HYBRID_TRACEBACK=1` shows the traceback of a bad input as
well; any other exception is a defect of the program and keeps its traceback.

A command imports what is heavy inside of `main`, where a signal is met with one word.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import itertools
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

from hybrid.options import bare, near_name, path_of

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143
LONGEST_LINE = 2000
"""Characters of an error: the values in it are bounded where it arises, this is for what was overlooked."""

_PATHS = ("RUN", "FILE", "FILE.html", "FOLDER", "PATH", "CORPUS")
"""Metavars of arguments that name a file or a folder."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
_ESCAPES = "hybrid.escape"
"""Name of the handler of what stdout cannot encode."""
log = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever tidies up after Ctrl-C does so after this, too."""


class Parser(argparse.ArgumentParser):
    """Refuses a wrong option in one line, as a wrong setting is refused."""

    def __init__(self, keys: Callable[[], Iterable[str]] | None = None, **options: Any):
        """Args: keys: gives the names of the settings (`trainer.steps`), of a command that takes `key=value`."""
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._keys = keys

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does; of what no option is called, say what may have been meant."""
        return self._complete(args, *self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Do as `parse_args`, with settings before and after the options."""
        return self._complete(args, *self.parse_known_intermixed_args(args, namespace))

    def _complete(self, args: Any, parsed: Any, rest: list[str]) -> Any:
        if rest:
            words = sys.argv[1:] if args is None else list(args)
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._meant(rest[0], words, parsed)}")
        return parsed

    def _meant(self, word: str, words: list[str], parsed: Any) -> str:
        """What may have been meant by a word: an option, a setting, or an option of an entry (`--decoder NAME ...`)."""
        typed, equals, value = word.partition("=")
        name = typed.lstrip("-").replace("-", "_")
        if not equals:
            value = next((after for before, after in itertools.pairwise(words) if before == word), "...")
        options = [option for action in self._actions for option in action.option_strings if option[:2] == "--"]
        near = near_name(f"--{name.replace('_', '-')}", options, least=0.8)
        if near is not None:
            return f" (did you mean {near}?)"
        keys = [key for key in (self._keys() if self._keys else ()) if name in (key, key.rpartition(".")[2])]
        if keys:
            return f" (did you mean {' or '.join(f'{key}={bare(value)}' for key in keys[:3])}?)"
        for action in self._actions:
            given = getattr(parsed, action.dest, None)
            if isinstance(action.metavar, tuple) and "key=value" in action.metavar and given:
                return f" (did you mean {action.option_strings[-1]} {' '.join(given)} {name}={bare(value)}?)"
        return ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does, but refuse an empty path and write out a home folder.

        An empty path would mean the current folder, or that none was given. A home folder that no shell has written out
        (`--checkpoint='~/x'`) would be made under the name `~`.
        """
        parsed, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            if metavar in _PATHS and "" in (value if isinstance(value, list) else [value]):
                name = action.option_strings[-1] if action.option_strings else metavar
                self.error(f"{name}: '' is empty (a variable of the shell that is not set?); name a path")
            if metavar in _PATHS and metavar != "CORPUS" and value is not None:  # a corpus may be no path at all
                setattr(parsed, action.dest, _written_out(action.option_strings[-1:] or [metavar], value))
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def add_model(parser: argparse.ArgumentParser, *, required: bool = True, gives: str = "") -> None:
    """Add the options of a command that loads a model: where it is, and the modules that are imported before.

    Args:
        required: whether the command has nothing to do without a model.
        gives: what a model adds to the result, where it is not required.
    """
    parser.add_argument(
        "--checkpoint", required=required, metavar="RUN",
        help="a run, a checkpoint (RUN/checkpoints/best: that of the lowest bound), a saved model, or the folder of a "
        "Hugging Face model" + gives,
    )  # fmt: skip
    parser.add_argument(
        "--imports", nargs="+", default=[], metavar="MODULE",
        help="modules imported first, which register entries of your own (run.imports of the run is imported too)",
    )  # fmt: skip


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options of where a network runs, and in which precision."""
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"),
        help="in which the network multiplies (default: auto on a GPU, else fp32; that of --dtype if it has 16 bits)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"),
        help="in which the weights are kept (default: float32); those of 16 bits are multiplied as they are",
    )  # fmt: skip


def _written_out(names: Sequence[str], value: Any) -> Any:
    if isinstance(value, list):
        return [_written_out(names, each) for each in value]
    return str(path_of(names[0], value)) if isinstance(value, str) and value.startswith("~") else value


def run(main: Callable[[], int | None]) -> int:
    """Set up the process, call `main` and return the exit code. Whoever imports this module is left as it is."""
    set_up_threads()
    set_up_logging()
    escape_unencodable()
    try:
        with _signals():
            code = main()
            sys.stdout.flush()
        return code or 0
    except Terminated:
        print("terminated", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `generate.py | head`: Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError) as error:
        if os.environ.get("HYBRID_TRACEBACK"):
            raise
        print(error_line(error), file=sys.stderr)
        return BAD_INPUT


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise inside; who ignores one (nohup) goes on doing so.

    Of several ranks SIGTERM ends one at once: it may be waiting for another, and would not hear of it.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        has_ranks = os.environ.get("WORLD_SIZE", "1") != "1"
        for number in (signal.SIGINT,) if has_ranks else (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    by_term = number == signal.SIGTERM
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            # In the middle of an import nothing is being written, and libraries that are half imported do not always
            # let an exception through: some print it, some raise another.
            os.write(2, b"terminated\n" if by_term else b"interrupted\n")
            os._exit(TERMINATED if by_term else INTERRUPTED)
        frame = frame.f_back
    raise Terminated if by_term else KeyboardInterrupt


def error_line(error: BaseException) -> str:
    """`error: ...` in one line of bounded length."""
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        text = f"{name}: {error.strerror}" if error.filename is not None else error.strerror
    else:
        text = str(error) or type(error).__name__
    return bare(_without_control(f"error: {' '.join(text.split())}"), LONGEST_LINE - 10)  # the cut leaves some more


def _without_control(text: str) -> str:
    """Escape control characters: a file's damaged bytes, say, must not reach the terminal as commands."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def set_up_threads() -> None:
    """Let threads that wait for each other spin for a shorter time, unless the environment says for how long.

    Torch's OpenMP reads it when it is loaded, so it must be set before. By default they spin for milliseconds: beside
    one other busy process on two cores, training then ran at a twentieth of its speed. With a shorter spin it ran at a
    third, and alone at 96%.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def set_up_logging(level: int = logging.INFO) -> None:
    """Log records and warnings go to stderr as plain lines; those from warning up begin with their level."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter())
    # Libraries below a warning are not news to the user; ours are.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts; the others say the same
    logging.getLogger("hybrid").setLevel(level if is_first else logging.ERROR)
    warnings.showwarning = _log_warning


def escape_unencodable() -> None:
    """Let stdout write `\\u65e5` and the like for what it cannot encode, and say so at the first."""
    if sys.stdout is None:  # it was closed before the start
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    warned = False

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        nonlocal warned
        if not warned:
            warned = True
            log.warning(
                "stdout: its encoding (%s) lacks some characters, which are written as escapes; set "
                "PYTHONIOENCODING=utf-8", sys.stdout.encoding,
            )  # fmt: skip
        return codecs.backslashreplace_errors(error)

    codecs.register_error(_ESCAPES, escape)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a stream of a test or a notebook may have none
    if reconfigure is not None:
        reconfigure(errors=_ESCAPES)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = _without_control(super().format(record))
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a Python warning as one line, without its place in the source, which no user of a command asked for."""
    logging.getLogger("hybrid").warning("%s", " ".join(str(message).split()))
