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
from tokenizers import Tokenizer

from lora_jax.errors import UserError, message_of, shown
from lora_jax.weights.gguf_header import Malformed, StoredTensor, map_file, read_header
from lora_jax.weights.gguf_tokenizer import make_tokenizer

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


class Gguf:
    """An open GGUF file.

    Raises:
      UserError: the file is not readable, or its architecture or encoding is not supported.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            self._data = map_file(file)
            header = read_header(self._data)
        except (OSError, Malformed) as error:
            raise UserError(f"{file} is not a readable GGUF file ({message_of(error)})") from error
        self.metadata, self._tensors = header.metadata, header.tensors
        self._kind = self.metadata.get("general.architecture")
        if not isinstance(self._kind, str) or self._kind not in ARCHITECTURES:
            raise UserError(
                f"{file}: general.architecture={shown(self._kind)}: must be one of {', '.join(ARCHITECTURES)}"
            )
        self._architecture = ARCHITECTURES[self._kind]
        unsupported = {t.encoding.name for t in self._tensors if t.encoding.name not in ENCODINGS}
        if unsupported:
            raise UserError(f"{file}: encodings {', '.join(sorted(unsupported))}: must be among {', '.join(ENCODINGS)}")

    def config(self) -> dict[str, Any]:
        """Returns the content of the model's config.json. Its values are not checked.

        Raises:
          UserError: a key or a tensor that the config is made from is missing or of a wrong type.
        """
        values: dict[str, Any] = {"model_type": self._architecture.model_type}
        for gguf_key, config_key in _CONFIG.items():
            value = self.metadata.get(f"{self._kind}.{gguf_key}")
            if value is not None:
                # The file stores float32. The shortest decimal that rounds to it is the original number.
                values[config_key] = float(str(np.float32(value))) if isinstance(value, float) else value
        stored = {tensor.name: tensor for tensor in self._tensors}
        if "token_embd.weight" not in stored:
            raise UserError(f"{self.file} has no tensor token_embd.weight")
        values["vocab_size"] = stored["token_embd.weight"].shape[0]
        values["tie_word_embeddings"] = "output.weight" not in stored
        scaling = self.metadata.get(f"{self._kind}.rope.scaling.type", "none")
        if "rope_freqs.weight" in stored:
            factors = self._dequantise(stored["rope_freqs.weight"], slice(None)).tolist()
            values["rope_scaling"] = {"rope_type": "factors", "factors": factors}
        elif scaling != "none":
            factor = self.metadata.get(f"{self._kind}.rope.scaling.factor")
            values["rope_scaling"] = {"rope_type": scaling, "factor": factor}
        if self._kind in _LARGEST_GEMMA:
            layers, width, heads, head_dim = (
                self._whole_number(key)
                for key in ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
            )
            values["query_pre_attn_scalar"] = width // heads if layers == _LARGEST_GEMMA[self._kind] else head_dim
        return values

    def _whole_number(self, name: str) -> int:
        """Returns a number of the architecture's metadata. Raises UserError if it is missing or not above zero."""
        key = f"{self._kind}.{name}"
        value = self.metadata.get(key)
        if type(value) is not int or value < 1:
            raise UserError(f"{self.file}: {key}={shown(value)}: must be a whole number, 1 or more")
        return value

    def tensors(self) -> dict[str, tuple[tuple[int, ...], Callable[[slice], np.ndarray]]]:
        """Returns the shape of every tensor and a function that reads rows of it, by Hugging Face's name.

        Raises:
          UserError: two tensors have the same name at Hugging Face.
        """
        result: dict[str, tuple[tuple[int, ...], Callable[[slice], np.ndarray]]] = {}
        for tensor in self._tensors:
            if tensor.name == "rope_freqs.weight":  # part of the config
                continue
            parts = tensor.name.split(".")
            layer = parts[1] if parts[0] == "blk" and len(parts) > 1 else ""
            pattern = ".".join(["blk", "{}", *parts[2:]]) if layer else tensor.name
            name = self._architecture.names.get(pattern, tensor.name).replace("{}", layer)
            if name in result:
                raise UserError(f"{self.file}: two tensors are {name!r}; {tensor.name!r} is one of them")
            result[name] = (tensor.shape, functools.partial(self._read, tensor))
        return result

    def _read(self, tensor: StoredTensor, rows: slice) -> np.ndarray:
        for part, key in {".attn_q.": "head_count", ".attn_k.": "head_count_kv"}.items():
            if self._architecture.interleaved and part in tensor.name:
                heads = self.metadata.get(f"{self._kind}.attention.{key}")
                heads = heads or self.metadata[f"{self._kind}.attention.head_count"]
                array = self._dequantise(tensor, slice(None))
                array = array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)[rows]
                break
        else:
            array = self._dequantise(tensor, rows)
        self._release(tensor)
        if self._architecture.norm_offset and tensor.name.endswith("norm.weight"):
            array = array - np.float32(self._architecture.norm_offset)
        return array

    def _dequantise(self, tensor: StoredTensor, rows: slice) -> np.ndarray:
        from gguf.quants import dequantize  # slow to import, and most models do not need it

        content = np.frombuffer(self._data, np.uint8, tensor.size, tensor.start)
        if len(tensor.shape) == 1:  # rows are elements, which are smaller than an encoding's blocks
            return dequantize(content, tensor.encoding)[rows]
        by_row = content.reshape(*tensor.shape[:-1], -1)
        return dequantize(by_row[rows], tensor.encoding)

    def _release(self, tensor: StoredTensor) -> None:
        """Releases the memory pages of `tensor`. Another read loads them again."""
        if hasattr(self._data, "madvise"):
            start = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.size - start)

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer in the file.

        Raises:
          UserError: the kind of the tokenizer or its pre-tokenizer is not supported, or its description is malformed.
        """
        try:
            return make_tokenizer(self.metadata)
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from None


@functools.lru_cache(maxsize=2)
def open_gguf(file: Path) -> Gguf:
    """Opens `file`. The result is cached, because a vocabulary of 262,144 tokens takes seconds to parse."""
    return Gguf(file)
