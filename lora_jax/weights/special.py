"""Reads the special tokens and the chat template of a checkpoint.

A chat template is a program that is distributed with the weights. It is rendered as in ``transformers``, in Jinja's
sandbox, which gives it the messages and no access to Python.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from lora_jax.errors import UserError
from lora_jax.weights.gguf import open_gguf
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
            raise UserError(f"the model's chat template failed ({type(error).__name__}: {error})") from error


def read_special(folder: Path, tokenizer: Tokenizer) -> Special:
    """Reads the special tokens and the chat template of the checkpoint in `folder`.

    As in ``transformers``, a token is read from the first of generation_config.json, config.json and
    tokenizer_config.json that has it.

    Args:
      folder: the folder of the checkpoint.
      tokenizer: the tokenizer of the checkpoint.

    Raises:
      UserError: a file is not JSON.
    """
    return _read_gguf(file, tokenizer) if (file := gguf_in(folder)) else _read_folder(folder, tokenizer)


def _read_gguf(file: Path, tokenizer: Tokenizer) -> Special:
    metadata = open_gguf(file).metadata
    bos, eos = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos"))
    # A turn of a chat may end with another token than a text. Generation stops at either.
    end_ids = (eos, *(metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom")))
    tokens = {kind: tokenizer.id_to_token(id) for kind, id in (("bos", bos), ("eos", eos)) if id is not None}
    texts = {f"{kind}_token": text for kind, text in tokens.items() if text is not None}
    return Special(bos, _distinct(end_ids), metadata.get("tokenizer.chat_template"), texts)


def _read_folder(folder: Path, tokenizer: Tokenizer) -> Special:
    generation, config, tokenizer_config = (
        _json(folder / name) for name in ("generation_config.json", "config.json", "tokenizer_config.json")
    )
    texts = {
        kind: text
        for kind in tokenizer_config
        if kind.endswith("_token") and isinstance(text := _text(tokenizer_config[kind]), str)
    }

    def ids(kind: str) -> tuple[int, ...]:
        tokenizer_id = tokenizer.token_to_id(texts.get(f"{kind}_token", ""))
        candidates = (generation.get(f"{kind}_token_id"), config.get(f"{kind}_token_id"), tokenizer_id)
        first = next((value for value in candidates if value is not None), None)
        return _distinct(first if isinstance(first, list) else [first])

    bos, eos = ids("bos"), ids("eos")
    # If tokenizer_config.json leaves a token to the tokenizer's class, the text comes from the id.
    for kind, token_ids in (("bos_token", bos), ("eos_token", eos)):
        if kind not in texts and token_ids and (text := tokenizer.id_to_token(token_ids[0])):
            texts[kind] = text
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several templates, by name
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text()
    return Special(next(iter(bos), None), eos, template, texts)


def _distinct(ids: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(id for id in ids if id is not None))


def _text(token: Any) -> Any:
    """Returns the text of a token in tokenizer_config.json, which is a string or an AddedToken as JSON."""
    return token.get("content") if isinstance(token, dict) else token


def _json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in `file`, or an empty one if there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object")
    return values


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
