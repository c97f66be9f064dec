"""What a model is asked, on the command line: a prompt, a conversation in a file, or one that is typed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_asking(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is asked: one of them, or nothing, which is an empty prompt."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", default="", metavar="TEXT", help="text to continue; - reads standard input")
    source.add_argument("--prompt-file", metavar="FILE", help="file with the text to continue")
    source.add_argument("--chat", action="store_true", help="talk to the model, by its chat template")
    source.add_argument(
        "--messages", metavar="FILE",
        help='answer a conversation, a JSON list of {"role": ..., "content": ...} (or {"messages": LIST}); - reads '
        "standard input",
    )  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="what a conversation begins with (--chat, --messages)")


def check_asking(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together with a conversation."""
    has_messages = arguments.messages is not None
    if arguments.system is not None and not (arguments.chat or has_messages):
        raise ValueError("--system: begins a conversation; give it beside --chat, or --messages FILE")
    if arguments.infill and has_messages:
        raise ValueError("--infill: a conversation has no gaps; leave it out, or --messages")
    single = {"--json": arguments.json, "--infill": arguments.infill, "--trace": arguments.trace is not None,
              "--slide": arguments.slide, "--num-samples": arguments.num_samples > 1}  # fmt: skip
    name = next((name for name, is_given in single.items() if is_given), None)
    if arguments.chat and name is not None:
        raise ValueError(f"{name}: does not go with --chat; leave it out (--messages FILE gives a single reply)")


def read_asked(arguments: argparse.Namespace) -> str:
    """Read --prompt (`-`: standard input) or --prompt-file, or the JSON of --messages; of --chat there is nothing yet.

    Of a file or of standard input a byte order mark at the start and one line end at the end are dropped.

    Raises:
        ValueError: it is not UTF-8, or no conversation that the assistant is to continue.
    """
    if arguments.messages is not None:
        return _messages(_read(arguments.messages, "--messages", "--messages"), arguments.messages, arguments.system)
    if arguments.prompt_file is not None:
        return _read(arguments.prompt_file, "--prompt-file", "--prompt")
    return _read("-", "--prompt", "--prompt") if arguments.prompt == "-" else arguments.prompt


def _read(source: str, key: str, key_of_stdin: str) -> str:
    from hybrid.data.corpora.reading import decoded, read_text  # late, so that --help is quick

    if source == "-":
        text = decoded(sys.stdin.buffer.read(), "standard input", key_of_stdin)
    else:
        text = read_text(Path(source), key)
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _messages(text: str, source: str, system: str | None) -> str:
    from hybrid.data.messages import checked_messages, renaming, system_message
    from hybrid.options import bare

    where = f"--messages: {'standard input' if source == '-' else source}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        several = "Extra data" in str(error)  # a line each, as in jsonl
        fix = "give one conversation: a list of messages" if several else "fix it"
        raise ValueError(f"{where} is not JSON ({str(error)[:200]}); {fix}") from None
    if isinstance(value, dict) and set(value) != {"messages"}:
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        renamed = renaming(value, lists[0] if lists else ()) or "give the list alone"
        raise ValueError(
            f"{where}: is an object with {', '.join(map(bare, value)) or 'nothing'}; it must be a list of "
            f'{{"role": ..., "content": ...}}, or an object with the one key messages; {renamed}'
        )
    messages = checked_messages(value["messages"] if isinstance(value, dict) else value, where)
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{where} ends with a message of the assistant; let it end with what is to be answered")
    if system is not None and messages[0]["role"] == "system":
        raise ValueError(f"--system: {source} begins with a system message already; leave one of them out")
    return json.dumps([*system_message(system), *messages])
