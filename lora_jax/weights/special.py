"""Reads the special tokens and the chat template of a checkpoint.

A chat template is a program that is distributed with the weights. It is rendered as in ``transformers``, in Jinja's
sandbox, which gives it the messages and no access to Python.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from lora_jax.errors import UserError, message_of, shown
from lora_jax.weights.gguf import open_gguf
from lora_jax.weights.json_file import read_object, read_text
from lora_jax.weights.sources import gguf_in


@dataclasses.dataclass(frozen=True)
class Special:
    """Special tokens and the chat template of a checkpoint.

    Attributes:
      bos: the id of the token that begins a text, if there is one.
      eos: the ids of the tokens that end a text.
      chat_template: the chat template, in Jinja, if there is one.
      texts: the texts of special tokens by the names that chat templates use: ``{"bos_token": "<s>", ...}``.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    chat_template: str | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Renders messages with the chat template.

        Args:
          messages: ``{"role": ..., "content": ...}`` each.
          add_generation_prompt: whether the text ends with the beginning of the model's answer.

        Returns:
          The text with its special tokens. Encode it with ``add_special_tokens=False``.

        Raises:
          UserError: there is no template, the template does not accept the messages, or the sandbox stops it.
        """
        if self.chat_template is None:
            raise UserError("this model has no chat template; give it plain text, or choose one tuned for chats")
        try:
            return _compile_template(self.chat_template).render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.texts,
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the model's chat template failed ({type(error).__name__}: {message_of(error)})"
            ) from error


def read_special(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> Special:
    """Reads the special tokens and the chat template of the checkpoint in `folder`.

    As in ``transformers``, a token is read from the first of generation_config.json, config.json and
    tokenizer_config.json that has it.

    Args:
      folder: the folder of the checkpoint.
      tokenizer: the tokenizer of the checkpoint.
      vocab_size: the number of tokens that the model knows.

    Raises:
      UserError: a file is not JSON, or has a value of a wrong type or the id of a token that the model does not know.
    """
    if file := gguf_in(folder):
        return _read_gguf(file, tokenizer, vocab_size)
    return _read_folder(folder, tokenizer, vocab_size)


def _read_gguf(file: Path, tokenizer: Tokenizer, vocab_size: int) -> Special:
    metadata = open_gguf(file).metadata

    def ids(*kinds: str) -> tuple[int, ...]:
        keys = [f"tokenizer.ggml.{kind}_token_id" for kind in kinds]
        return _distinct(id for key in keys for id in _ids(metadata, key, file, vocab_size))

    bos, eos = ids("bos"), ids("eos")
    tokens = {kind: tokenizer.id_to_token(id[0]) for kind, id in (("bos", bos), ("eos", eos)) if id}
    texts = {f"{kind}_token": text for kind, text in tokens.items() if text is not None}
    # A turn of a chat may end with another token than a text. Generation stops at either.
    template = _template(metadata.get("tokenizer.chat_template"), file)
    return Special(next(iter(bos), None), ids("eos", "eot", "eom"), template, texts)


def _read_folder(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> Special:
    generation, config, tokenizer_config = (
        folder / name for name in ("generation_config.json", "config.json", "tokenizer_config.json")
    )
    values = {file: read_object(file) if file.is_file() else {} for file in (generation, config, tokenizer_config)}
    texts = {
        kind: text
        for kind, token in values[tokenizer_config].items()
        if kind.endswith("_token") and isinstance(text := _text(token), str)
    }

    def ids(kind: str) -> tuple[int, ...]:
        key = f"{kind}_token_id"
        for file in (generation, config):
            if values[file].get(key) is not None:
                return _ids(values[file], key, file, vocab_size)
        tokenizer_id = tokenizer.token_to_id(texts.get(f"{kind}_token", ""))
        return () if tokenizer_id is None else (tokenizer_id,)

    bos, eos = ids("bos"), ids("eos")
    # If tokenizer_config.json leaves a token to the tokenizer's class, the text comes from the id.
    for kind, token_ids in (("bos_token", bos), ("eos_token", eos)):
        if kind not in texts and token_ids and (text := tokenizer.id_to_token(token_ids[0])):
            texts[kind] = text
    if (file := folder / "chat_template.jinja").is_file():
        template: str | None = read_text(file)
    else:
        template = _template(values[tokenizer_config].get("chat_template"), tokenizer_config)
    return Special(next(iter(bos), None), eos, template, texts)


def _ids(values: Mapping[str, Any], key: str, file: Path, vocab_size: int) -> tuple[int, ...]:
    """Returns the ids at a key: one, a list, or none. Raises UserError if one is not a token of the model."""
    value = values.get(key)
    candidates = value if isinstance(value, list) else [] if value is None else [value]
    for candidate in candidates:
        if type(candidate) is not int or not 0 <= candidate < vocab_size:
            raise UserError(f"{file}: {key}={shown(value)}: must be ids of tokens, from 0 to {vocab_size - 1}")
    return _distinct(candidates)


def _template(value: Any, file: Path) -> str | None:
    """Returns a chat template. Of several, ``[{"name", "template"}, ...]``, it is the one that is named default."""
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    if not isinstance(value, str | None):
        raise UserError(f"{file}: chat_template={shown(value)}: must be a text, or a list of named texts")
    return value


def _distinct(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _text(token: Any) -> Any:
    """Returns the text of a token in tokenizer_config.json, which is a string or an AddedToken as JSON."""
    return token.get("content") if isinstance(token, dict) else token


# ---- Jinja


class _Generation(Extension):
    """The tag ``{% generation %}``, which marks the model's answers for training. It renders its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own annotation)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Returns `value` as JSON. Jinja's filter would also escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@functools.lru_cache(maxsize=8)
def _compile_template(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(template)
