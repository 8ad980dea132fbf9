"""Reads GGUF files, llama.cpp's one-file format: with the names and layouts of Hugging Face checkpoints.

This module reverses llama.cpp's conversion of a checkpoint: llama.cpp interleaves the rows of Llama's q and k for its
rotary embedding, and adds one to Gemma's norms. Quantised tensors are dequantised one at a time.
"""

import dataclasses
import functools
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lora_jax.errors import UserError

# ---- names

_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_COMMON = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blk.{}.attn_k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    **{
        f"blk.{{}}.{gguf}.{kind}": f"model.layers.{{}}.{hugging_face}.{kind}"
        for gguf, hugging_face in _LINEARS.items()
        for kind in ("weight", "bias")
    },
}
_LLAMA = {**_COMMON, "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight"}
_GEMMA2 = {
    **_COMMON,
    "blk.{}.post_attention_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.pre_feedforward_layernorm.weight",
    "blk.{}.post_ffw_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How llama.cpp converts one of Hugging Face's model types.

    Attributes:
      model_type: Hugging Face's name of the type.
      names: Hugging Face's names of tensors by llama.cpp's. ``{}`` stands for the number of a layer.
      interleaved: whether the rows of q and k are interleaved.
      norm_offset: what is added to the scales of norms.
    """

    model_type: str
    names: Mapping[str, str]
    interleaved: bool = False
    norm_offset: float = 0.0


# By `general.architecture`.
ARCHITECTURES = {
    "llama": Architecture("llama", _LLAMA, interleaved=True),
    "qwen2": Architecture("qwen2", _LLAMA),
    "qwen3": Architecture("qwen3", _LLAMA),
    "gemma": Architecture("gemma", _LLAMA, norm_offset=1.0),
    "gemma2": Architecture("gemma2", _GEMMA2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", _GEMMA2, norm_offset=1.0),
}
# The encodings that can be read.
ENCODINGS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
# Keys of the metadata, after the architecture's name, and the corresponding keys of config.json.
_CONFIG = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
# The numbers of layers of the 27B Gemmas, which scale attention scores by another width than their heads'. The files do
# not store that width. Llama.cpp, too, recognises these models by their number of layers.
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}


class _Reader(GGUFReader):
    """A reader over a plain array view of the memory map. Slicing a memmap takes four times as long."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._mapped = mapped
        self._plain = mapped.view(np.ndarray)

    def release(self, tensor: ReaderTensor) -> None:
        """Releases the memory pages of `tensor`. Another read loads them again."""
        pages: mmap.mmap = self._mapped._mmap  # type: ignore[attr-defined]
        if hasattr(pages, "madvise"):
            start = tensor.data_offset // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_DONTNEED, start, tensor.data_offset + tensor.n_bytes - start)


class Gguf:
    """An open GGUF file.

    Raises:
      UserError: the file is not readable, or its architecture or encoding is not supported.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            self._reader = _Reader(file)
            self.metadata = {name: field.contents() for name, field in self._reader.fields.items()}
        except Exception as error:  # the reader raises exceptions of many types
            raise UserError(f"{file} is not a readable GGUF file ({type(error).__name__}: {error})") from error
        self._kind = self.metadata.get("general.architecture")
        if self._kind not in ARCHITECTURES:
            raise UserError(f"{file}: general.architecture={self._kind!r}: must be one of {', '.join(ARCHITECTURES)}")
        self._architecture = ARCHITECTURES[self._kind]
        unsupported = {t.tensor_type.name for t in self._reader.tensors if t.tensor_type.name not in ENCODINGS}
        if unsupported:
            raise UserError(f"{file}: encodings {', '.join(sorted(unsupported))}: must be among {', '.join(ENCODINGS)}")

    def config(self) -> dict[str, Any]:
        """Returns the content of the model's config.json."""
        values: dict[str, Any] = {"model_type": self._architecture.model_type}
        for gguf_key, config_key in _CONFIG.items():
            value = self.metadata.get(f"{self._kind}.{gguf_key}")
            if value is not None:
                # The file stores float32. The shortest decimal that rounds to it is the original number.
                values[config_key] = float(str(np.float32(value))) if isinstance(value, float) else value
        stored = {tensor.name: tensor for tensor in self._reader.tensors}
        values["vocab_size"] = int(stored["token_embd.weight"].shape[1])
        values["tie_word_embeddings"] = "output.weight" not in stored
        scaling = self.metadata.get(f"{self._kind}.rope.scaling.type", "none")
        if "rope_freqs.weight" in stored:
            factors = _array(stored["rope_freqs.weight"], slice(None)).tolist()
            values["rope_scaling"] = {"rope_type": "factors", "factors": factors}
        elif scaling != "none":
            factor = self.metadata.get(f"{self._kind}.rope.scaling.factor")
            values["rope_scaling"] = {"rope_type": scaling, "factor": factor}
        if self._kind in _LARGEST_GEMMA:
            largest = values["num_hidden_layers"] == _LARGEST_GEMMA[self._kind]
            width = values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
            values["query_pre_attn_scalar"] = width
        return values

    def tensors(self) -> dict[str, tuple[tuple[int, ...], Callable[[slice], np.ndarray]]]:
        """Returns the shape of every tensor and a function that reads rows of it, by Hugging Face's name."""
        result: dict[str, tuple[tuple[int, ...], Callable[[slice], np.ndarray]]] = {}
        for tensor in self._reader.tensors:
            if tensor.name == "rope_freqs.weight":  # part of the config
                continue
            parts = tensor.name.split(".")
            layer = parts[1] if parts[0] == "blk" else ""
            pattern = ".".join(["blk", "{}", *parts[2:]]) if layer else tensor.name
            name = self._architecture.names.get(pattern, tensor.name).replace("{}", layer)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            result[name] = (shape, functools.partial(self._read, tensor))
        return result

    def _read(self, tensor: ReaderTensor, rows: slice) -> np.ndarray:
        for part, key in {".attn_q.": "head_count", ".attn_k.": "head_count_kv"}.items():
            if self._architecture.interleaved and part in tensor.name:
                heads = self.metadata.get(f"{self._kind}.attention.{key}")
                heads = heads or self.metadata[f"{self._kind}.attention.head_count"]
                array = _array(tensor, slice(None))
                array = array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)[rows]
                break
        else:
            array = _array(tensor, rows)
        self._reader.release(tensor)
        if self._architecture.norm_offset and tensor.name.endswith("norm.weight"):
            array = array - np.float32(self._architecture.norm_offset)
        return array

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer in the file.

        Raises:
          UserError: the kind of the tokenizer or its pre-tokenizer is not supported.
        """
        values = {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in self.metadata.items()
            if key.startswith("tokenizer.ggml.")
        }
        makers = {"gpt2": _byte_level, "llama": _sentencepiece}
        if (kind := values.get("model")) not in makers:
            raise UserError(f"{self.file}: tokenizer.ggml.model={kind!r}: must be one of {', '.join(makers)}")
        try:
            tokenizer = makers[kind](values)
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from None
        control = [t for t, kind in zip(values["tokens"], values["token_type"], strict=True) if kind == _CONTROL]
        added = [t for t, kind in zip(values["tokens"], values["token_type"], strict=True) if kind == _USER]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
        default = kind == "llama" or values.get("pre") == "llama-bpe"  # if the file has no add_bos_token
        if values.get("add_bos_token", default) and "bos_token_id" in values:
            bos = values["tokens"][values["bos_token_id"]]
            template = processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, values["bos_token_id"])]
            )
            tokenizer.post_processor = template
        return tokenizer


@functools.lru_cache(maxsize=2)
def open_gguf(file: Path) -> Gguf:
    """Opens `file`. The result is cached, because a vocabulary of 262,144 tokens takes seconds to parse."""
    return Gguf(file)


def _array(tensor: ReaderTensor, rows: slice) -> np.ndarray:
    return dequantize(tensor.data[rows], tensor.tensor_type)


# ---- tokenizers

_CONTROL, _USER = 3, 4  # llama.cpp's token types

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


def _byte_level(values: Mapping[str, Any]) -> Tokenizer:
    """Returns a byte-level BPE tokenizer, as in GPT-2."""
    pre = values.get("pre", "gpt-2")
    if pre not in _SPLITTERS:
        raise UserError(f"tokenizer.ggml.pre={pre!r}: must be one of {', '.join(_SPLITTERS)}")
    vocabulary = {token: index for index, token in enumerate(values["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in values["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _SPLITTERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(values: Mapping[str, Any]) -> Tokenizer:
    """Returns a BPE tokenizer over characters with a fallback to bytes, as in Llama 1 and 2 and Gemma.

    The file has scores instead of merges. A token's score ranks every pair of tokens that concatenates to it.
    """
    tokens, scores = values["tokens"], values["scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for token, score in zip(tokens, scores, strict=True):
        splits = [
            (left, right)
            for i in range(1, len(token))
            if (left := token[:i]) in vocabulary and (right := token[i:]) in vocabulary
        ]
        splits.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        pairs += [(pair, score) for pair in splits]
    pairs.sort(key=lambda item: -item[1])
    unknown = tokens[values.get("unknown_token_id", 0)]
    model = models.BPE(vocabulary, [pair for pair, _ in pairs], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    add_prefix_space = bool(values.get("add_space_prefix", True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if add_prefix_space else replace
    if not add_prefix_space:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if add_prefix_space else steps)
    return tokenizer
