"""What a checkpoint says beside its weights: the tokens a text starts and ends with, and how a chat becomes a text.

A chat template is a program that came with the weights. It is rendered as ``transformers`` renders it, in Jinja's
sandbox: it sees the messages and nothing of Python behind them.
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
    """`bos` begins a text, any of `eos` ends one; ids, and none where the checkpoint names none.

    `texts` are tokens that a chat template asks for by name: ``{"bos_token": "<s>", ...}``.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    chat_template: str | None = None
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """`messages`, ``{"role": ..., "content": ...}`` each, as the model was taught to read them.

        With `add_generation_prompt`, what comes next is the model's answer. The text has its special tokens in it:
        encode it with ``add_special_tokens=False``. Raises UserError where there is no template, or it fails: on
        messages that it does not take, or because it reaches for what the sandbox keeps from it.
        """
        if self.chat_template is None:
            raise UserError("this model has no chat template; give it plain text, or choose one tuned for chats")
        try:
            return _compiled(self.chat_template).render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.texts,
            )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the model's chat template failed ({type(error).__name__}: {error})") from error


def read_special(folder: Path, tokenizer: Tokenizer) -> Special:
    """What the checkpoint in `folder` says; `tokenizer` is the one in there.

    Of generation_config.json, config.json and tokenizer_config.json, the first that names a token counts, as in
    ``transformers``. Raises UserError for a file that is not JSON.
    """
    return _of_gguf(file, tokenizer) if (file := gguf_in(folder)) else _of_folder(folder, tokenizer)


def _of_gguf(file: Path, tokenizer: Tokenizer) -> Special:
    metadata = open_gguf(file).metadata
    bos, eos = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos"))
    # A chat's turn may end otherwise than a text does, and a model stops at either.
    ends = (eos, *(metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom")))
    known = {kind: tokenizer.id_to_token(id) for kind, id in (("bos", bos), ("eos", eos)) if id is not None}
    texts = {f"{kind}_token": text for kind, text in known.items() if text is not None}
    return Special(bos, _distinct(ends), metadata.get("tokenizer.chat_template"), texts)


def _of_folder(folder: Path, tokenizer: Tokenizer) -> Special:
    generation, config, about = (
        _json(folder / name) for name in ("generation_config.json", "config.json", "tokenizer_config.json")
    )
    texts = {kind: text for kind in about if kind.endswith("_token") and isinstance(text := _text(about[kind]), str)}

    def ids(kind: str) -> tuple[int, ...]:
        named = tokenizer.token_to_id(texts.get(f"{kind}_token", ""))
        said = (generation.get(f"{kind}_token_id"), config.get(f"{kind}_token_id"), named)
        first = next((value for value in said if value is not None), None)
        return _distinct(first if isinstance(first, list) else [first])

    bos, eos = ids("bos"), ids("eos")
    # A tokenizer_config.json may leave to its class what the ids tell as well.
    for kind, found in (("bos_token", bos), ("eos_token", eos)):
        if kind not in texts and found and (text := tokenizer.id_to_token(found[0])):
            texts[kind] = text
    template = about.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((each["template"] for each in template if each["name"] == "default"), None)
    if (file := folder / "chat_template.jinja").is_file():
        template = file.read_text()
    return Special(next(iter(bos), None), eos, template, texts)


def _distinct(ids: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(id for id in ids if id is not None))


def _text(token: Any) -> Any:
    """A token's text; tokenizer_config.json has it plain, or with how it is split from what surrounds it."""
    return token.get("content") if isinstance(token, dict) else token


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object")
    return values


# ---- Jinja


class _Generation(Extension):
    """``{% generation %}`` marks what the model itself said, for training; it prints what is in it."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own annotation)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Jinja's own filter escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(template)
