"""Compile the Jinja of a chat template: in a sandbox, with the helpers that published templates use."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hybrid.options import bare


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant says; it stands for what is in it."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def compiled(source: str, now: datetime | None = None) -> tuple[Callable[..., str], list[str]]:
    """Return what renders a template, and the texts that stand in its expressions.

    Args:
        now: what templates are told that ask for the date; None: the clock.

    Raises:
        ValueError: it is no Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
    try:
        template = environment.from_string(source, {"tools": None, "documents": None})
        texts = [node.value for node in environment.parse(source).find_all(nodes.Const)]
    except TemplateSyntaxError as error:
        raise _unreadable(f"{bare(error.message or 'a syntax error', 200)}, line {error.lineno}") from None
    except (SyntaxError, RecursionError, MemoryError) as error:  # of the Python that Jinja makes of it
        raise _unreadable(bare(getattr(error, "msg", "") or "it is nested too deeply", 200)) from None
    return template.render, [text for text in texts if isinstance(text, str)]


def _unreadable(why: str) -> ValueError:
    return ValueError(f"the chat template can't be read ({why}); correct it, or take another one")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as it is: Jinja's own filter escapes what has a meaning in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
