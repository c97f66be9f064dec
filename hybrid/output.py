"""What is printed is not lost: characters that stdout's encoding lacks are written as escapes."""

from __future__ import annotations

import codecs
import logging
import os
import sys

_HANDLER = "hybrid.escape"
log = logging.getLogger(__name__)


def escape_unencodable() -> None:
    """From now on stdout writes `\\u65e5` and the like for what it cannot encode, and says so at the first."""
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

    codecs.register_error(_HANDLER, escape)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a stream of a test or a notebook may have none
    if reconfigure is not None:
        reconfigure(errors=_HANDLER)
