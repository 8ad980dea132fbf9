"""Conversations, written by a checkpoint's chat template, of which the assistant's turns are learnt."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from lora_jax.data.prompts import Prompts, pad_prompts
from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.errors import UserError, shown

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from lora_jax.weights.special import Special

logger = logging.getLogger("lora_jax")

ASSISTANT = "assistant"
ROLES = ("system", "user", ASSISTANT)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str


Chat = tuple[Message, ...]


@dataclass(frozen=True, eq=False)
class Chats:
    """The conversations of one split, each with a turn of the assistant or more. It is a `Split` (examples.py)."""

    messages: list[Chat]

    def __post_init__(self) -> None:
        for i, chat in enumerate(self.messages):
            if not any(message.role == ASSISTANT for message in chat):
                raise ValueError(f"conversation {i} has no turn of the assistant")

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def labels(self) -> list[str]:
        """The assistant's last turn of each conversation."""
        return [chat[last_answer(chat)].content for chat in self.messages]

    def content(self) -> list[list[Any]]:
        return [self.messages]

    def take(self, rows: Sequence[int]) -> "Chats":
        """Returns the conversations at `rows`, in that order."""
        return Chats([self.messages[row] for row in rows])

    def join(self, other: "Chats") -> "Chats":
        """Returns these conversations, and then those of `other`."""
        return Chats(self.messages + other.messages)

    def scored(self, limit: int | None) -> "Chats":
        """Returns the first `limit` conversations."""
        return self.take(range(len(self))[:limit])


def last_answer(chat: Chat) -> int:
    """Returns the place of the assistant's last turn."""
    return max(i for i, message in enumerate(chat) if message.role == ASSISTANT)


def to_json(chat: Chat) -> str:
    """Returns a conversation as JSON, which `from_json` reads."""
    return json.dumps(chat, ensure_ascii=False)


def from_json(text: str) -> Chat:
    """Returns the conversation that `to_json` wrote."""
    return tuple(Message(*message) for message in json.loads(text))


class Rendered(NamedTuple):
    """A conversation as a chat template writes it, and the spans of characters that the assistant's turns take.

    A span ends with what the template writes after the turn: the token that ends it, and often a newline.
    """

    text: str
    answers: list[tuple[int, int]]


def render(chat: Chat, special: "Special") -> Rendered:
    """Renders a conversation with the chat template of a checkpoint.

    An assistant's turn is what the template adds to the text of the conversation before it, which ends with the
    beginning of an answer (``add_generation_prompt``), as a user of the trained model has it.

    Raises:
      UserError: the template does not accept the conversation, or writes earlier turns in another way once there are
        later ones, so that no text begins as the prompt does that a user has.
    """
    messages = [message._asdict() for message in chat]
    text = special.chat(messages, add_generation_prompt=False)
    answers = []
    for i, message in enumerate(chat):
        if message.role == ASSISTANT:
            prompt = special.chat(messages[:i])
            answered = special.chat(messages[: i + 1], add_generation_prompt=False)
            if not (answered.startswith(prompt) and text.startswith(answered)):
                raise UserError(
                    f"the chat template writes the turns before message {i + 1} in another way once it is there, so "
                    f"its tokens cannot be distinguished; expected conversations with one turn of the assistant, the "
                    f"last, or another model"
                )
            answers.append((len(prompt), len(answered)))
    return Rendered(text, answers)


def tokenize_chats(chats: Chats, tokenizer: "Tokenizer", special: "Special", max_length: int, split: str) -> Encoded:
    """Tokenises conversations, each as one text, cut at its end to `max_length` tokens.

    The label of a token is the token after it if that belongs to a turn of the assistant, up to and with the token that
    ends the turn, and otherwise IGNORED. A token that lies across the beginning of a turn belongs to it, as in
    ``transformers``.

    Args:
      chats: the conversations.
      tokenizer: of the model that reads the tokens.
      special: its chat template, and the tokens that end a turn.
      max_length: at most so many tokens for each conversation.
      split: names the conversations in an error.

    Raises:
      UserError: as in `render`, or no token of an answer lies within `max_length`.
    """
    rendered = [_render(chat, special, f"{split} conversation {i}") for i, chat in enumerate(chats.messages)]
    rows, labels, unended = [], [], 0
    for i, (encoding, (_, answers)) in enumerate(
        zip(_encode(tokenizer, [text for text, _ in rendered]), rendered, strict=True)
    ):
        tokens = np.array(encoding.ids, np.int32)
        answer, ended = _of_answers(tokens, np.array(encoding.offsets).reshape(-1, 2), answers, special.eos)
        unended += not ended
        label = np.append(np.where(answer[1:], tokens[1:], IGNORED), IGNORED)[:max_length]
        if not (label != IGNORED).any():
            raise UserError(
                f"{split} conversation {i} ({shown(chats.messages[i][0].content)}) has no token of the assistant among "
                f"its first {max_length}; expected one, with a larger task.max_length or task.buckets"
            )
        rows.append(tokens[:max_length])
        labels.append(label)
    if unended:
        logger.warning(
            "%d of %d %s conversations have a turn of the assistant that the chat template ends with none of the "
            "tokens at which generation stops",
            *(unended, len(chats), split),
        )
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Encoded(np.concatenate(rows), offsets, np.concatenate(labels).astype(np.int32), max_length, by_token=True)


def make_chat_prompts(chats: Chats, tokenizer: "Tokenizer", special: "Special", pad: int, max_length: int) -> Prompts:
    """Returns each conversation up to the assistant's last turn as a prompt, and that turn as its reference.

    Raises:
      UserError: as in `render`, or a prompt has more than `max_length` tokens.
    """
    asked = [chat[: last_answer(chat)] for chat in chats.messages]
    texts = [special.chat([message._asdict() for message in chat]) for chat in asked]
    rows = [encoding.ids for encoding in _encode(tokenizer, texts)]
    for i, row in enumerate(rows):
        if len(row) > max_length:
            raise UserError(
                f"test conversation {i} ({shown(chats.messages[i][0].content)}) has {len(row)} tokens before its last "
                f"answer; expected at most {max_length}, or a larger task.max_length or task.buckets"
            )
    return pad_prompts(texts, [[answer] for answer in chats.labels], rows, pad)


def _render(chat: Chat, special: "Special", where: str) -> Rendered:
    try:
        return render(chat, special)
    except UserError as error:
        raise UserError(f"{where} ({shown(chat[0].content)}): {error}") from error


def _of_answers(
    tokens: Int[np.ndarray, " tokens"],
    spans: Int[np.ndarray, "tokens 2"],
    answers: Sequence[tuple[int, int]],
    ends: Sequence[int],
) -> tuple[Bool[np.ndarray, " tokens"], bool]:
    """Returns which tokens belong to answers, and whether each answer ends with one of the tokens `ends`.

    Args:
      tokens: of a conversation.
      spans: the characters of each token.
      answers: the characters of each answer, with what the template writes after it.
      ends: the tokens that may end an answer. What follows the last of them in an answer does not belong to it.
    """
    belongs, ended = np.zeros(len(tokens), bool), True
    for start, stop in answers:
        places = np.flatnonzero((spans[:, 0] < stop) & (spans[:, 1] > start))
        last = places[np.isin(tokens[places], ends)][-1:]
        belongs[places if not len(last) else places[places <= last]] = True
        ended &= bool(len(last))
    return belongs, ended


def _encode(tokenizer: "Tokenizer", texts: Sequence[str]) -> list["Encoding"]:
    """Tokenises rendered conversations, which have their special tokens; with the characters of each token."""
    copy = tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    encodings: list[Encoding] = copy.encode_batch(texts, add_special_tokens=False)
    return encodings
