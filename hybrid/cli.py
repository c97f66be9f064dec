"""What the command lines share: errors in one line, exit codes, and logging to stderr (stdout is for results).

    if __name__ == "__main__":
        sys.exit(cli.run(main))

Exit codes: 0 done, 2 bad input (ValueError, or a file that cannot be read or written), 130 interrupted, 141 the reader
of stdout went away. `HYBRID_TRACEBACK=1` shows the traceback of a bad input as well; any other exception is a defect of
the program and keeps its traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from hybrid.output import escape_unencodable

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

if "OMP_WAIT_POLICY" not in os.environ:
    # Torch's OpenMP reads it when it is loaded, so it must be set before. Threads that wait for each other spin, by
    # default for milliseconds: beside one other busy process on two cores, training then ran at a twentieth of its
    # speed. With a shorter spin it ran at a third, and alone at 96%.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class Parser(argparse.ArgumentParser):
    """Refuses a wrong option in one line, as a wrong setting is refused."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options")


def run(main: Callable[[], int | None]) -> int:
    """Set up logging, call `main` and return the exit code of the process."""
    set_up_logging()
    escape_unencodable()
    try:
        code = main()
        sys.stdout.flush()
        return code or 0
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


def error_line(error: BaseException) -> str:
    """`error: ...` in one line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    else:
        text = str(error) or type(error).__name__
    return f"error: {' '.join(text.split())}"


def set_up_logging(level: int = logging.INFO) -> None:
    """Log records and warnings go to stderr as plain lines; those from warning up begin with their level."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter())
    # Libraries below a warning are not news to the user; ours are.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts; the others say the same
    logging.getLogger("hybrid").setLevel(level if is_first else logging.ERROR)
    warnings.showwarning = _log_warning


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A Python warning as one line, without the place in the source, which is of no use to who typed the command."""
    logging.getLogger("hybrid").warning("%s", " ".join(str(message).split()))
