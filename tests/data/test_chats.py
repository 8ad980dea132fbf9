"""Conversations: what a chat template writes of them, which tokens are learnt, and a sweep that learns them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import CommandLine, read, records
from tokenizers import Tokenizer

from lora_jax.config import TaskConfig
from lora_jax.data.chats import Chats, Message, from_json, make_chat_prompts, render, to_json, tokenize_chats
from lora_jax.data.encoding import encode_task
from lora_jax.data.task import TaskData
from lora_jax.data.tasks import find_task
from lora_jax.data.tokens import IGNORED
from lora_jax.errors import UserError
from lora_jax.metrics import Predictions, score
from lora_jax.weights.load import load_base
from lora_jax.weights.special import Special

END = 256
TURNS = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<end>\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}a:{% endif %}"
# As some templates that leave out the thoughts of earlier answers.
FORGETFUL = TEMPLATE.replace("{{ m.content }}", "{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}")
SPECIAL = Special(eos=(END,), chat_template=TEMPLATE)


def chat(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))


@pytest.fixture
def tokenizer(tiny_decoder) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_decoder / "tokenizer.json"))


@pytest.fixture(scope="module")
def chatty(tiny_decoder, tmp_path_factory) -> Path:
    """The tiny decoder with a chat template."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(tiny_decoder, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": TEMPLATE}))
    return folder


def learnt(encoded, tokenizer: Tokenizer, i: int = 0) -> list[str]:
    """The texts of the runs of labelled tokens of an example."""
    labels = encoded.labels[encoded.offsets[i] : encoded.offsets[i + 1]].tolist()
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def test_answers_are_what_the_template_adds_to_the_prompt():
    text, answers = render(chat("Hi", "Hello", "Bye", "See you", "?"), SPECIAL)
    assert text == "u:Hi<end>\na:Hello<end>\nu:Bye<end>\na:See you<end>\nu:?<end>\n"
    assert [text[start:stop] for start, stop in answers] == ["Hello<end>\n", "See you<end>\n"]


def test_the_loss_is_on_every_answer_and_its_end(tokenizer):
    chats = Chats([chat("Hi", "Hello", "Bye", "See you"), chat("é", " naïve 🤖\n")])
    encoded = tokenize_chats(chats, tokenizer, SPECIAL, 100, "train")
    assert learnt(encoded, tokenizer) == ["Hello<end>", "See you<end>"]
    assert learnt(encoded, tokenizer, 1) == [" naïve 🤖\n<end>"]
    labels = encoded.labels[: encoded.offsets[1]]
    places = np.flatnonzero(labels != IGNORED)
    assert (labels[places] == encoded[0][places + 1]).all() and encoded.by_token


def test_a_conversation_is_cut_at_its_end(tokenizer):
    one = Chats([chat("Hi", "Hello")])
    assert learnt(tokenize_chats(one, tokenizer, SPECIAL, 10, "train"), tokenizer) == ["Hel"]
    with pytest.raises(
        UserError, match=r"^valid conversation 0 \('Hi'\) has no token of the assistant among its first 7"
    ):
        tokenize_chats(one, tokenizer, SPECIAL, 7, "valid")


def test_a_turn_that_ends_otherwise_is_learnt_to_its_end_with_a_warning(tokenizer, caplog):
    encoded = tokenize_chats(Chats([chat("Hi", "Hello")]), tokenizer, Special((), (), TEMPLATE), 50, "train")
    assert learnt(encoded, tokenizer) == ["Hello<end>\n"]
    assert (
        "1 of 1 train conversations have a turn of the assistant that the chat template ends with none" in caplog.text
    )


def test_prompts_end_where_the_last_answer_begins(tokenizer):
    chats = Chats([chat("Hi", "Hello", "Bye", "See you", "?"), chat("Hi", "Hello"), chat("Hi", "Hey")])
    prompts = make_chat_prompts(chats, tokenizer, SPECIAL, END, 100)
    assert prompts.texts == ["u:Hi<end>\na:Hello<end>\nu:Bye<end>\na:", "u:Hi<end>\na:", "u:Hi<end>\na:"]
    # One for each conversation, so that texts and likelihoods are of the same examples.
    assert prompts.references == [["See you"], ["Hello"], ["Hey"]]
    assert prompts.mask.sum(-1).tolist() == [24, 8, 8] and prompts.tokens.shape == (3, 32)
    with pytest.raises(
        UserError, match=r"^test conversation 0 \('Hi'\) has 24 tokens before its last answer; expected at"
    ):
        make_chat_prompts(chats, tokenizer, SPECIAL, END, 23)


def test_templates_that_rewrite_earlier_turns_are_refused(tokenizer):
    special = Special(eos=(END,), chat_template=FORGETFUL)
    tokenize_chats(Chats([chat("Hi", "Hello")]), tokenizer, special, 50, "train")
    with pytest.raises(
        UserError,
        match=r"^train conversation 1 \('A'\): the chat template writes the turns before message 2 in another",
    ):
        tokenize_chats(Chats([chat("Hi", "Hello"), chat("A", "B", "C", "D")]), tokenizer, special, 50, "train")


def test_a_conversation_that_the_template_refuses_is_named(tokenizer):
    special = Special(eos=(END,), chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        UserError, match=r"^train conversation 0 \('Hi'\): the model's chat template failed \(TemplateErr"
    ):
        tokenize_chats(Chats([chat("Hi", "Hello")]), tokenizer, special, 50, "train")


def test_json_keeps_a_conversation():
    given = chat('"Hi"\n\u2028', "naïve 🤖")
    assert from_json(to_json(given)) == given


def data_of(*chats: tuple[Message, ...]) -> TaskData:
    return TaskData((), dict.fromkeys(("train", "valid", "test"), Chats(list(chats))))


def test_the_fingerprint_tells_conversations_apart():
    given = [chat("Hi", "Hello"), chat("Hi", "Hello", "Bye"), (Message("system", "Hi"), Message("assistant", "Hello"))]
    assert len({data_of(one).fingerprint for one in given}) == 3
    assert data_of(given[0]).fingerprint == data_of(chat("Hi", "Hello")).fingerprint


def test_eval_examples_limits_what_is_scored_and_generated(chatty):
    base = load_base(str(chatty), "llama", head="causal")
    settings = {"name": "jsonl", "steps": 1, "kind": "chat", "messages": "m", "eval_examples": 2}
    config = TaskConfig.model_validate(settings)
    data = data_of(*(chat(f"Hi {i}", "Hello") for i in range(5)))
    tokens = encode_task(find_task(config), data, base, config)
    assert {name: len(split) for name, split in tokens.encoded.items()} == {"train": 5, "valid": 2, "test": 2}
    assert len(tokens.prompts) == 2


def test_a_model_without_a_template_is_refused(tiny_decoder):
    base = load_base(str(tiny_decoder), "llama", head="causal")
    config = TaskConfig.model_validate({"name": "jsonl", "steps": 1, "kind": "chat", "messages": "m"})
    with pytest.raises(UserError, match=r"this model has no chat template"):
        encode_task(find_task(config), data_of(chat("Hi", "Hello")), base, config)


@pytest.mark.slow
def test_a_sweep_that_learns_to_answer(command: CommandLine, chatty, tmp_path):
    """Two ranks and full fine-tuning; what they answer is left in the folders."""
    lines = [{"id": i, "talk": [m._asdict() for m in chat(f"Say {i}", "ok", "Again", "ok")]} for i in range(40)]
    data = tmp_path / "raw"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["model=smollm2_135m", f"model.source={chatty}", "task=jsonl", f"task.data_dir={data}", "task.kind=chat"]
    short = ["task.messages=talk", "task.id=id", "task.buckets=[80]", "task.decode.new_tokens=6", "eval_every=10"]
    done = command.sweep(tmp_path / "sweep", *asked, *short, "steps=20", "eval_batch=8", "rank=2,4", "lr=3e-2")
    assert done.returncode == 0, done.stderr
    assert "generating 2 x 4 test texts" in done.stdout and "test rougeL" in done.stdout
    for name in ("rank=2", "rank=4", "method=full"):
        folder = tmp_path / "sweep" / name
        summary = read(folder / "summary.json")
        texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
        assert [text["references"] for text in texts] == [["ok"]] * 4
        assert all(text["prompt"].endswith("u:Again<end>\na:") for text in texts)
        assert (summary["metric"], summary["select"]) == ("rougeL", "loss")
        predictions = Predictions(texts=[text["text"] for text in texts], references=[["ok"]] * 4)
        assert summary["test"]["rougeL"] == pytest.approx(score(predictions, ["rougeL"])["rougeL"])
        losses = [record["valid/loss"] for record in records(folder) if "valid/loss" in record]
        assert losses[1] < losses[0] < 5.5  # log 257 = 5.55
    run = read(tmp_path / "sweep/rank=2/run.json")
    assert (
        run["data"]["examples"] == {"train": 32, "valid": 4, "test": 4} and run["config"]["task"]["messages"] == "talk"
    )
