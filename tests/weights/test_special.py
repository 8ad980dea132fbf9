"""lora_jax.weights.special: special tokens and chat templates."""

import json

import pytest
from tokenizers import Tokenizer, models
from weights.test_gguf import byte_level
from weights.test_gguf import write as write_gguf

from lora_jax.errors import UserError
from lora_jax.weights import load
from lora_jax.weights.special import Special, read_special

TOKENIZER = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<turn>": 2, "one": 3}, unk_token="one"))
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (None, ())),
        ({"config": {"bos_token_id": 0, "eos_token_id": 1}}, (0, (1,))),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": [1, 2]}}, (None, (1, 2))),
        ({"tokenizer_config": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}}, (0, (1,))),
        ({"config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "</s>"}}, (None, (2,))),
    ],
)
def test_special_tokens_of_a_folder(files, expected, tmp_path):
    for name, values in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    special = read_special(tmp_path, TOKENIZER, 4)
    assert (special.bos, special.eos) == expected and special.chat_template is None
    with pytest.raises(UserError, match="no chat template"):
        special.chat(CHAT)


@pytest.mark.parametrize("form", ["plain", "named", "file"])
def test_the_chat_template_of_a_folder(form, tmp_path):
    tokenizer_config = {"bos_token": "<s>"}
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    else:
        several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
        tokenizer_config |= {"chat_template": several if form == "named" else TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))  # its text comes from the tokenizer
    assert read_special(tmp_path, TOKENIZER, 4).chat(CHAT) == "<s>user: Hi</s>"


def test_special_tokens_and_chat_template_of_a_gguf(tmp_path):
    def tokenizer(writer):
        byte_level(writer)
        writer.add_eos_token_id(0)
        writer.add_eot_token_id(3)
        writer.add_chat_template(TEMPLATE)

    write_gguf(tmp_path / "model.gguf", tokenizer=tokenizer)
    special = load.load_base(str(tmp_path), "llama", head="causal").special
    assert (special.bos, special.eos) == (0, (0, 3))
    assert special.chat(CHAT) == "<|end|>user: Hi<|end|>"


def test_templates_have_the_functions_of_transformers():
    template = (
        "{%- if tools is none and documents is none %}\n"
        "    {%- for m in messages %}\n"
        "  {% generation %}\n"
        "{{ m | tojson }}{% endgeneration %}\n"
        "    {%- if loop.first %}{% continue %}{% endif %}{% endfor %}\n"
        "{% endif %}\n"
        "{{ strftime_now('%Y') | length }}{% if add_generation_prompt %} go{% endif %}"
    )
    special = Special(chat_template=template)
    assert special.chat([{"role": "user", "content": "é<b>"}]) == '{"role": "user", "content": "é<b>"}4 go'
    assert special.chat([], add_generation_prompt=False) == "4"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('touch evil').read() }}", "SecurityError"),
        ("{{ (messages | map(attribute='__class__') | first).mro() }}", "SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails_or_leaves_the_sandbox_is_refused(template, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"chat template failed.*{message}"):
        Special(chat_template=template).chat(CHAT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [4, -1, True, "1", 1.0, [1, 4], {"id": 1}])
@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_ids_that_the_model_does_not_know_are_refused(value, file, tmp_path):
    (tmp_path / f"{file}.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match=rf"{file}\.json: eos_token_id=.*: must be ids of tokens, from 0 to 3"):
        read_special(tmp_path, TOKENIZER, 4)


@pytest.mark.parametrize("value", [3, {"a": "b"}, ["x"], [{"name": "default", "template": 3}]])
def test_a_chat_template_that_is_no_text_is_refused(value, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template=.*: must be a text"):
        read_special(tmp_path, TOKENIZER, 4)


def test_a_chat_template_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        read_special(tmp_path, TOKENIZER, 4)
