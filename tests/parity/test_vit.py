"""ViT here and in Hugging Face's transformers, on small random weights: the same numbers; and the same pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity.test_encoders import (
    BATCH,
    LABELS,
    ODD,
    SMALL,
    assert_adapts,
    assert_close,
    assert_gradients,
    first_layers,
    gradients,
    head_of,
    pairs,
    randomise,
    replaced,
)
from PIL import Image

from lora_jax.data.images import EncodedImages, Images
from lora_jax.delta import graft, parameters
from lora_jax.errors import UserError
from lora_jax.weights.load import load_base
from lora_jax.weights.preprocessing import Preprocessing, read_preprocessing

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE = {
    "vit": {"image_size": 32, "patch_size": 8},
    "vit, odd heads": ODD | {"image_size": 30, "patch_size": 10, "qkv_bias": False},
    "vit, grey": {"image_size": 16, "patch_size": 4, "num_channels": 1},
}


@pytest.fixture(scope="module", params=list(IMAGE))
def image(request, tmp_path_factory):
    """The reference and ours."""
    settings = {key: value for key, value in SMALL.items() if key not in ("vocab_size", "max_position_embeddings")}
    config = transformers.ViTConfig(**(settings | IMAGE[request.param]), num_labels=LABELS)
    reference = transformers.ViTForImageClassification(config).eval()
    randomise(reference)
    folder = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": config.image_size, "width": config.image_size}).save_pretrained(
        folder
    )
    loaded = load_base(str(folder), "vit", labels=LABELS)
    assert isinstance(loaded.tokenizer, Preprocessing)
    assert loaded.parameters == sum(value.numel() for value in reference.vit.parameters())
    return reference, graft(loaded.model, replaced(head_of(reference)))


def pictures(model) -> np.ndarray:
    config = model.backbone.config
    shape = (BATCH, config.image_size, config.image_size, config.num_channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_hidden_states_of_images(image):
    reference, model = image
    pixels = pictures(model)
    with torch.no_grad():
        given = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
        theirs = reference(given, output_hidden_states=True).hidden_states
        theirs = [reference.vit.layernorm(hidden).numpy() for hidden in theirs]
    for count in range(1, len(theirs)):
        hidden = jax.jit(lambda m: m(pixels))(first_layers(model.backbone, count))
        assert_close(hidden, theirs[count], within=1e-4, what=f"after layer {count}")


def test_logits_and_gradients_of_images(image, tmp_path):
    reference, model = image
    pixels, labels = pictures(model), np.arange(BATCH) % LABELS
    theirs = reference(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()), labels=torch.tensor(labels))

    def loss(m):
        logits = m(pixels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(model)
    assert_close(logits, theirs.logits.detach(), within=1e-4, what="logits")
    ours = parameters(grads)
    folder = gradients(reference, theirs.loss, tmp_path)
    transformers.ViTImageProcessorPil().save_pretrained(folder)
    assert_gradients(ours, parameters(load_base(str(folder), "vit", labels=LABELS).model.backbone))


@pytest.mark.parametrize("image", ["vit, odd heads"], indirect=True)
def test_deltas_on_images(image):
    _, model = image
    assert "backbone/embed/patch/adapter" in pairs(model, 0)
    assert_adapts(model, pictures(model))


@pytest.mark.parametrize("image", ["vit, grey"], indirect=True)
def test_vit_refuses_images_of_another_size(image):
    _, model = image
    with pytest.raises(UserError, match="this ViT takes"):
        model(jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"height": 20, "width": 31}, "resample": 3, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 1]},
        {"do_normalize": False, "resample": 0},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_preprocessing(settings, tmp_path):
    processor = transformers.ViTImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (224, 224), (301, 500)]
    images = [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    theirs = np.stack(processor(images)["pixel_values"]).transpose(0, 2, 3, 1)
    ours = read_preprocessing(tmp_path)(images)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_preprocessing_takes_grey_pictures_and_refuses_other_steps(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"size": 8}')
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    pixels = read_preprocessing(tmp_path)([grey])
    assert pixels.shape == (1, 8, 8, 3) and (pixels == pixels[..., :1]).all()
    for text, complaint in {
        '{"size": {"shortest_edge": 224}}': "size=",
        '{"do_center_crop": true}': "do_center_crop=True",
        "{": "is not JSON",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=complaint):
            read_preprocessing(tmp_path)


def test_batches_of_images_are_what_the_processor_makes(tmp_path):
    processor = transformers.ViTImageProcessorPil(size={"height": 48, "width": 48})
    processor.save_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    split = Images(rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), np.zeros(6, np.int32))
    batch = EncodedImages(split, read_preprocessing(tmp_path)).padded(np.array([5, 0, 3]), 1, 0)
    theirs = np.stack(processor([Image.fromarray(split.pixels[i]) for i in (5, 0, 3)])["pixel_values"])
    np.testing.assert_allclose(batch.tokens, theirs.transpose(0, 2, 3, 1), rtol=1e-6, atol=1e-6)
