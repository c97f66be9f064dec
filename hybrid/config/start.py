"""The network of a model in another's format that a run starts from: it has no config.yaml of ours to be taken from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybrid.config.dialect import as_text
from hybrid.options import path_of, shown

if TYPE_CHECKING:
    from hybrid.model.config import ModelConfig

SIZES = {"dim": "dim", "n_layers": "n_layers", "n_heads": "n_heads", "n_kv_heads": "kv_heads",
         "head_dim": "head_width", "hidden_dim": "mlp_dim"} | {key: key for key in (
             "norm", "mlp", "qkv_bias", "mlp_bias", "qk_norm", "tied_embeddings", "vocab_size", "latent")}  # fmt: skip
"""What decides the names and shapes of weights: keys of group `model`, and what says their value where it is null."""


def network_of(init_from: str | None) -> dict[str, Any]:
    """Return `{"model": {key: value, ...}}` of the folder that `trainer.init_from` names.

    It is empty if none is named, if it is one of ours, or not there.

    Raises:
        ValueError: the folder cannot be read; one line that names it.
    """
    if not init_from:
        return {}
    from hybrid.checkpoints.importers import imported_settings  # late, so that --help is quick

    settings = imported_settings(path_of("trainer.init_from", init_from).absolute())
    if settings is None:
        return {}
    return {"model": {key.removeprefix("model."): v for key, v in settings.items() if key.startswith("model.")}}


def refuse_other_sizes(model: ModelConfig, theirs: ModelConfig, init_from: str, is_taken: bool) -> None:
    """Raise a ValueError if the weights of a folder do not fit into a network; it has the values of both.

    Args:
        is_taken: whether keys that are left out have the values of the folder.
    """
    if model.n_heads < 1:  # of which nothing can be derived; it is refused by itself
        return
    differing = {key: (getattr(model, name), getattr(theirs, name))
                 for key, name in SIZES.items() if getattr(model, key) != getattr(theirs, key)}  # fmt: skip
    wrong = {key: values for key, values in differing.items() if values[0] != values[1]}
    if not theirs.latent:  # a layer that starts at zero
        wrong.pop("latent", None)
    if not wrong:
        return
    found = ", ".join(f"model.{key} = {shown(ours)} (there {shown(other)})" for key, (ours, other) in wrong.items())
    settings = " ".join(f"model.{key}={as_text(getattr(theirs, key))}" for key in wrong)
    left_out = "leave out what is given here, or set " if is_taken else "set "
    raise ValueError(
        f"trainer.init_from: {init_from} has weights of another architecture: {found}; {left_out}{settings}"
    )
