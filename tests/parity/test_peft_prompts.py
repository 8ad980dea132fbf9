"""Prefix-tuning and prompt tuning here and in Hugging Face's PEFT: from the same start, the same training."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lora_jax.data.batches import TrainBatches
from lora_jax.data.tokens import IGNORED, Encoded
from lora_jax.methods.prefix import PATH
from lora_jax.weights.load import load_base

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

STEPS, BATCH, LONGEST, VOCAB, VIRTUAL, LAYERS = 20, 4, 14, 61, 5, 3
MODELS = {
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 24, "bos_token_id": 0, "eos_token_id": 0}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "max_position_embeddings": 64},
}
PEFT = {"prefix": "PrefixTuningConfig", "prompt": "PromptTuningConfig"}


def texts() -> Encoded:
    """Returns texts of 6 to 14 random tokens. The first three are the prompt: no label asks for them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, LONGEST + 1, 40)
    rows = [rng.integers(0, VOCAB, length) for length in lengths]
    labels = [[IGNORED] * 2 + row[3:].tolist() + [IGNORED] for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(
        np.concatenate(rows).astype(np.int32), offsets, np.concatenate(labels).astype(np.int32), LONGEST, by_token=True
    )


def train_reference(model, run, batches):
    """Returns the losses of STEPS steps of AdamW."""
    torch.set_num_threads(1)  # beside JAX's, more threads only wait for each other
    trained = [value for value in model.parameters() if value.requires_grad]
    settings = {"betas": (run.optim.b1, run.optim.b2), "eps": run.optim.eps, "weight_decay": run.optim.weight_decay}
    optimizer = torch.optim.AdamW(trained, lr=run.lr, **settings)
    losses = []
    for step in range(STEPS):
        tokens, mask, labels = (torch.tensor(np.asarray(array[0])) for array in batches[step][:3])
        # transformers moves labels by one itself.
        shifted = torch.nn.functional.pad(labels, (1, 0), value=IGNORED)[:, :-1].long()
        shifted = torch.where(shifted == IGNORED, -100, shifted)
        loss = model(input_ids=tokens.long(), attention_mask=mask.long(), labels=shifted).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, run.optim.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), trained


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", PEFT)
def test_training_follows_pefts(method, kind, tmp_path, configure, pack_of):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCAB, **MODELS[kind])
    plain = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for value in plain.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    plain.save_pretrained(tmp_path)
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    base = load_base(str(tmp_path), kind, head="causal").model
    settings = {"method__init_std": 1.0} if method == "prefix" else {}
    run = configure(
        method,
        method__length=VIRTUAL,
        task__name="e2e",
        task__buckets=(LONGEST,),
        lr=1e-2,
        steps=STEPS,
        batch=BATCH,
        optim__warmup=0.0,
        optim__schedule="constant",
        optim__weight_decay=0.1,
        **settings,
    )
    pack = pack_of(base, [run])
    pack.batches = TrainBatches(texts(), batch=BATCH, buckets=(LONGEST,), seeds=[0])
    pack.program.method.validate(base, run)
    start = pack.inits[0].params

    theirs = peft.get_peft_model(plain, getattr(peft, PEFT[method])(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL))
    table = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        table.copy_(torch.tensor(as_pefts(method, start)))
    assert table.numel() == pack.inits[0].trainable
    losses, trained = train_reference(theirs.train(), run, pack.batches)
    pack.train(base, STEPS)

    difference = np.abs(pack.metrics.loss[:, 0] - losses).max()
    initial, ours = as_pefts(method, start), as_pefts(method, pack.params(0))
    moved = np.linalg.norm(ours - table.detach().numpy()) / np.linalg.norm(ours - initial)
    print(
        f"\n{STEPS} steps of {method} on {kind} beside PEFT: loss differs by {difference:.1e}, the delta by {moved:.1e}"
    )
    assert len(trained) == 1 and np.abs(ours - initial).max() > 0.1
    assert difference < 1e-3
    assert moved < 1e-2


def as_pefts(method: str, params) -> np.ndarray:
    """Returns our parameters in the shape of PEFT's embedding of virtual tokens."""
    if method == "prompt":
        return np.asarray(params["backbone/embed/adapter"].rows)
    # A row for each token: k and then v of the first layer, those of the second, ...
    both = np.stack([np.asarray(params[PATH].k), np.asarray(params[PATH].v)], axis=1)
    return both.transpose(2, 0, 1, 3, 4).reshape(VIRTUAL, -1)
