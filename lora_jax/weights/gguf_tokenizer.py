"""Builds the tokenizer that the metadata of a GGUF file describes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lora_jax.errors import UserError, shown
from lora_jax.models.fields import Count, check_fields

PREFIX = "tokenizer.ggml."
# Characters. Every split of a token is tried, so the time grows with the square.
Token = Annotated[str, Field(max_length=1024)]
_CONTROL, _USER = 3, 4  # llama.cpp's types of tokens


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The metadata below ``tokenizer.ggml.``, under llama.cpp's names."""

    model: str
    tokens: Sequence[Token]
    token_type: Sequence[int]
    pre: str = "gpt-2"
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    bos_token_id: Count | None = None
    unknown_token_id: Count = 0
    add_bos_token: bool | None = None
    add_space_prefix: bool = True

    def __post_init__(self):
        if self.model not in _MAKERS:
            raise ValueError(f"model={self.model!r}: must be one of {', '.join(_MAKERS)}")
        if len(self.tokens) != len(self.token_type):
            raise ValueError(f"token_type has {len(self.token_type)} entries, and tokens has {len(self.tokens)}")
        for name in ("bos_token_id", "unknown_token_id"):
            if (getattr(self, name) or 0) >= len(self.tokens):
                raise ValueError(f"{name}={getattr(self, name)}: must be below the {len(self.tokens)} tokens")

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that the metadata describes.

    Raises:
      UserError: a key is missing, has a wrong value, or is of a tokenizer that is not supported.
    """
    values = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    if missing := [name for name in ("model", "tokens", "token_type") if name not in values]:
        raise UserError(f"it has no {', '.join(PREFIX + name for name in missing)}")
    try:
        vocabulary = Vocabulary(**check_fields(Vocabulary, values))
        tokenizer = _MAKERS[vocabulary.model](vocabulary)
    except ValueError as error:
        raise UserError(f"{PREFIX}{error}") from None
    of_type = {
        kind: [token for token, its in zip(vocabulary.tokens, vocabulary.token_type, strict=True) if its == kind]
        for kind in (_CONTROL, _USER)
    }
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in of_type[_CONTROL]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in of_type[_USER]])
    default = vocabulary.model == "llama" or vocabulary.pre == "llama-bpe"  # if the file has no add_bos_token
    adds_bos = default if vocabulary.add_bos_token is None else vocabulary.add_bos_token
    if adds_bos and vocabulary.bos_token_id is not None:
        bos = vocabulary.tokens[vocabulary.bos_token_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, vocabulary.bos_token_id)]
        )
    return tokenizer


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Pre-tokenizers, which split text before BPE, by `tokenizer.ggml.pre`.
_SPLITTERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split_by(_LLAMA3),
    "qwen2": lambda: _split_by(_QWEN2),
}


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """Returns a byte-level BPE tokenizer, as in GPT-2."""
    if vocabulary.pre not in _SPLITTERS:
        raise ValueError(f"pre={vocabulary.pre!r}: must be one of {', '.join(_SPLITTERS)}")
    if wrong := [merge for merge in vocabulary.merges if " " not in merge]:
        raise ValueError(f"merges has {shown(wrong[0])}: must be two tokens with a space between them")
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=vocabulary.pre == "llama-bpe"))
    if vocabulary.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITTERS[vocabulary.pre]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """Returns a BPE tokenizer over characters with a fallback to bytes, as in Llama 1 and 2 and Gemma.

    The file has scores instead of merges. A token's score ranks every pair of tokens that concatenates to it.
    """
    ids = vocabulary.ids
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise ValueError(f"scores has {len(vocabulary.scores)} entries, and tokens has {len(vocabulary.tokens)}")
    pairs = []
    for token, score in zip(vocabulary.tokens, vocabulary.scores, strict=True):
        splits = [
            (left, right) for i in range(1, len(token)) if (left := token[:i]) in ids and (right := token[i:]) in ids
        ]
        splits.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        pairs += [(pair, score) for pair in splits]
    pairs.sort(key=lambda item: -item[1])
    unknown = vocabulary.tokens[vocabulary.unknown_token_id]
    model = models.BPE(ids, [pair for pair, _ in pairs], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "▁")
    if vocabulary.add_space_prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    return tokenizer


# By `tokenizer.ggml.model`.
_MAKERS: dict[str, Callable[[Vocabulary], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
