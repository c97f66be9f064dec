"""Checks of what a Python caller passes: numbers of the right kind and range, and prompts as lists of token ids.

Every error is a ValueError that names the argument. Integers of numpy and of torch are taken as what they are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from hybrid.options import shown

if TYPE_CHECKING:
    from torch import Tensor

SEEDS = (-(1 << 63), (1 << 63) - 1)
"""Seeds and keys are 64 bits; beyond them two would mean the same."""


def integer(name: str, value: Any, least: int, most: int | None = None, also: str = "") -> int:
    """`value` as an int.

    Args:
        also: what else the caller takes, for the message (", or None for all").

    Raises:
        ValueError: no integer (a bool is none), or out of range.
    """
    number = _index(value)
    if number is None or number < least or (most is not None and number > most):
        if most is None:
            allowed = f"an integer of at least {least}"
        else:
            allowed = "an integer of 64 bits" if (least, most) == SEEDS else f"an integer from {least} to {most}"
        raise ValueError(f"{name}: {shown(value)} must be {allowed}{also}")
    return number


def number(name: str, value: Any, is_allowed: Callable[[float], bool], allowed: str) -> float:
    """`value` as a finite float.

    Args:
        allowed: the range in words, for the message.

    Raises:
        ValueError: no number (a bool or a string is none), not finite, or out of range.
    """
    result = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not math.isfinite(result) or not is_allowed(result):
        raise ValueError(f"{name}: {shown(value)} must be {allowed}")
    return result


def flag(name: str, value: Any) -> bool:
    """`value` if it is True or False; raises a ValueError if not."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {shown(value)} must be True or False")
    return value


def prompt_ids(prompts: Any, encode: Callable[[str], list[int]] | None = None) -> list[list[int]]:
    """Prompts as lists of token ids.

    Args:
        prompts: a list of prompts, each a list or a tensor of ids or, with `encode`, a string; or a tensor of ids
            [prompts, length]; or a single string.

    Raises:
        ValueError: anything else, named `prompts`.
    """
    if isinstance(prompts, str) and encode is not None:
        return [encode(prompts)]
    if _is_array(prompts):
        return _rows_of(prompts, 2, "prompts")
    texts = "" if encode is None else ", or strings"
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        raise ValueError(f"prompts: {shown(prompts)} is no list of prompts; give lists of token ids{texts}")
    return [_prompt(i, prompt, encode, texts) for i, prompt in enumerate(prompts)]


def token_ids(name: str, ids: Any) -> list[int]:
    """Ids of one text as a list: integers in any iterable but a string, or an array or tensor [length].

    Raises:
        ValueError: anything else, named `name`.
    """
    if _is_array(ids):
        if ids.ndim == 2:
            raise ValueError(f"{name}: {list(ids.shape)} holds the ids of {len(ids)} texts; give them one by one")
        return _rows_of(ids, 1, name)
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise ValueError(f"{name}: {shown(ids)} must be a list of token ids")
    given = list(ids)
    numbers = [token if type(token) is int else _index(token) for token in given]
    if None in numbers:
        raise ValueError(f"{name}: {shown(given[numbers.index(None)])} is no integer; give a list of token ids")
    return numbers  # type: ignore[return-value]


def text_rows(tokens: Any, seq_len: int, vocab_size: int, banned: int | None = None) -> Tensor:
    """`tokens` if they are int64 (batch, length), at most `seq_len` long, of a vocabulary.

    Args:
        banned: the MASK that lies in the vocabulary of some models, which texts do not hold.

    Raises:
        ValueError: they are not, named `tokens`.
    """
    from torch import Tensor, int64  # late: commands check numbers before they load it

    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != int64 or tokens.numel() == 0:
        got = f"{list(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens: {got} is not a non-empty int64 tensor [batch, length]")
    if tokens.shape[1] > seq_len:
        raise ValueError(f"tokens: rows of {tokens.shape[1]} exceed the context of {seq_len} (data.seq_len); cut them")
    bad = (tokens < 0) | (tokens >= vocab_size)
    if bad.any():
        raise ValueError(f"tokens: {int(tokens[bad][0])} is not in the vocabulary (0 to {vocab_size - 1})")
    if banned is not None and (tokens == banned).any():
        raise ValueError(f"tokens: {banned} is MASK, which texts do not hold; give what stands there")
    return tokens


def target_flags(is_target: Any, tokens: Tensor) -> Tensor:
    """`is_target` if it is a bool tensor of the shape of `tokens`.

    Raises:
        ValueError: it is not.
    """
    from torch import Tensor
    from torch import bool as flags

    if not isinstance(is_target, Tensor) or is_target.dtype != flags or is_target.shape != tokens.shape:
        got = f"{list(is_target.shape)} {is_target.dtype}" if isinstance(is_target, Tensor) else shown(is_target)
        raise ValueError(f"is_target: {got} is not a bool tensor {list(tokens.shape)}, as tokens is")
    return is_target


def _prompt(i: int, prompt: Any, encode: Callable[[str], list[int]] | None, texts: str) -> list[int]:
    if isinstance(prompt, str) and encode is not None:
        return encode(prompt)
    if _is_array(prompt):
        return _rows_of(prompt, 1, f"prompts: prompt {i}")
    if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Sequence):
        raise ValueError(
            f"prompts: prompt {i} is {shown(prompt)}, no list of token ids; give a list of prompts, e.g. [[1, 2, 3]]"
            f"{texts}"
        )
    ids = [token if type(token) is int else _index(token) for token in prompt]
    if None in ids:
        raise ValueError(f"prompts: token {shown(prompt[ids.index(None)])} of prompt {i} is no integer")
    return ids  # type: ignore[return-value]


def _index(value: Any) -> int | None:
    """Return the integer that `value` is, or None: neither bools nor numbers with a fraction are integers."""
    if isinstance(value, bool) or (_is_array(value) and "bool" in str(value.dtype)):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def _is_array(value: Any) -> bool:
    """Return whether it is a tensor of torch or an array of numpy."""
    return hasattr(value, "dtype") and hasattr(value, "tolist") and hasattr(value, "ndim")


def _rows_of(array: Any, n_axes: int, name: str) -> Any:
    kind = str(array.dtype).removeprefix("torch.")
    if array.ndim != n_axes or not kind.startswith(("int", "uint")):
        axes = "[prompts, length]" if n_axes == 2 else "[length]"
        raise ValueError(f"{name}: {list(array.shape)} of {kind} must be integers {axes}")
    return array.tolist()
