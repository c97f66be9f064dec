"""The tokenizer of a GGUF file, as tokenizer.json and tokenizer_config.json have it.

llama.cpp stores a vocabulary, merges, and the name of the rule by which a text is cut into words. Only byte-level BPE
with a rule that is known here is covered: with another rule the ids of a text would be others, without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.checkpoints.gguf.reading import GGUFFile
from hybrid.options import bare, shown

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""Types of tokens in llama.cpp; 1 is normal. Unused ones fill up the embedding, and no text has them."""
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>", "<|endofturn|>")
"""Tokens that end a turn of a conversation, if the chat template writes them."""
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Cutting:
    """How a text is cut before BPE.

    Attributes:
        digits: how many digits a word has at most; None: any number (the rule of GPT-2).
        pattern: whether letters and signs follow the pattern of Llama 3 and Qwen2, and not that of GPT-2.
        normalises: whether a text is brought into Unicode's form NFC before.
        ignores_merges: whether a word that is a token is taken whole.
        begins: whether a text begins with the begin token, if the file does not say.
    """

    digits: int | None = None
    pattern: bool = False
    normalises: bool = False
    ignores_merges: bool = False
    begins: bool = False


CUTTINGS = {
    "gpt-2": Cutting(),
    "smollm": Cutting(digits=1),
    "llama-bpe": Cutting(digits=3, pattern=True, ignores_merges=True, begins=True),
    "qwen2": Cutting(digits=1, pattern=True, normalises=True),
}


def tokenizer_of(file: GGUFFile, n_rows: int) -> Any:
    """Return a `tokenizers.Tokenizer` with the ids of the file.

    Args:
        n_rows: of the embedding, which the ids must not exceed.

    Raises:
        ValueError: another kind of tokenizer, a rule of cutting that is not covered, or lists that do not fit.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    cutting = _cutting(file)
    vocabulary, types = _vocabulary(file, n_rows)
    pairs = (merge.partition(" ") for merge in _texts(file, "tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cutting.ignores_merges))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file.path}: tokenizer.ggml.merges does not fit its tokens ({bare(error)})") from None
    if cutting.normalises:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(cutting)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([
        AddedToken(name, special=kind == CONTROL, normalized=False)
        for name, kind in types.items() if kind in (CONTROL, USER_DEFINED)
    ])  # fmt: skip
    begin = file.get("tokenizer.ggml.bos_token_id", int, None)
    if begin is not None and file.get("tokenizer.ggml.add_bos_token", bool, cutting.begins):
        name = tokenizer.id_to_token(begin)
        begins = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name}:1 $B:1", special_tokens=[(name, begin)]
        )
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, begins])
    return tokenizer


def special_ids(file: GGUFFile, n_rows: int) -> dict[str, Any]:
    """Return the ids of the begin, the end and the padding token, as config.json and generation_config.json have them.

    The end is a list where the chat template ends a turn by another token than the file names.
    """

    def get(key: str) -> int | None:
        token = file.get(f"tokenizer.ggml.{key}_token_id", int, None)
        if token is not None and not 0 <= token < n_rows:
            raise ValueError(f"{file.path}: tokenizer.ggml.{key}_token_id: {token} is none of the {n_rows} ids")
        return token

    ends = [token for token in (get("eos"), get("eot")) if token is not None]
    if not ends:
        raise ValueError(f"{file.path}: has no tokenizer.ggml.eos_token_id")
    template = file.get("tokenizer.chat_template", str, "")
    tokens = _texts(file, "tokenizer.ggml.tokens")
    ends += [tokens.index(name) for name in TURN_ENDS if name in template and name in tokens]
    ends = list(dict.fromkeys(ends))
    return {
        "bos_token_id": get("bos"),
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": get("padding"),
    }


def tokenizer_config(file: GGUFFile, ids: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return what tokenizer_config.json says: special tokens by their text, and the chat template, if there is one."""
    tokens = _texts(file, "tokenizer.ggml.tokens")
    end = ids["eos_token_id"]
    named = {"bos_token": ids["bos_token_id"], "eos_token": end[0] if isinstance(end, list) else end}
    named |= {"pad_token": ids["pad_token_id"]}
    texts = {key: tokens[token] for key, token in named.items() if token is not None and token < len(tokens)}
    template = file.get("tokenizer.chat_template", str, None)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False, **texts, **({"chat_template": template} if template else {}),
    }  # fmt: skip


def _cutting(file: GGUFFile) -> Cutting:
    kind = file.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        known = {"llama": " (SentencePiece)", "bert": " (WordPiece)", "t5": " (Unigram)"}
        raise ValueError(
            f"{file.path}: its tokenizer {bare(kind)}{known.get(kind, '')} is not covered; byte-level BPE is"
        )
    rule = file.get("tokenizer.ggml.pre", str, None)
    if rule is None or rule not in CUTTINGS:
        said = "does not say how a text is cut (tokenizer.ggml.pre)" if rule is None else f"cuts text by {bare(rule)}"
        raise ValueError(f"{file.path}: {said}, which is not covered; {', '.join(CUTTINGS)} are")
    return CUTTINGS[rule]


def _pre_tokenizer(cutting: Cutting) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if cutting.pattern:
        numbers = r"\p{N}" if cutting.digits == 1 else rf"\p{{N}}{{1,{cutting.digits}}}"
        pattern = Regex("|".join([_CONTRACTIONS, _WORDS, numbers, _REST]))
        parts = [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        return pre_tokenizers.Sequence(parts)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), words]) if cutting.digits else words


def _texts(file: GGUFFile, key: str) -> list[str]:
    values = file.get(key, list)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{file.path}: {key} holds something else than texts")
    return values


def _vocabulary(file: GGUFFile, n_rows: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the id and the type of each token, without those that only fill up the embedding."""
    tokens = _texts(file, "tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
    if len(types) != len(tokens) or len(tokens) > n_rows:
        raise ValueError(
            f"{file.path}: {len(tokens)} tokens, {len(types)} types of tokens and {n_rows} rows of the embedding do "
            f"not fit together"
        )
    used = [(name, token, kind) for token, (name, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED]
    vocabulary = {name: token for name, token, _ in used}
    if len(vocabulary) < len(used):
        twice = next(name for name, token, _ in used if vocabulary[name] != token)
        raise ValueError(f"{file.path}: tokenizer.ggml.tokens has {shown(twice)} twice")
    return vocabulary, {name: kind for name, _, kind in used}
