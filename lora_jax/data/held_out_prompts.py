"""Cuts a validation split from the training prompts of generation tasks without one."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lora_jax.data.held_out import normalise, validation_texts

MOST = 500  # validation texts are scored at every evaluation of a run

Example = TypeVar("Example", bound=Mapping[str, Any])


def cut_prompts(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Returns the examples to train on and those of the validation split, by their ``prompt``.

    The validation split has a tenth of the distinct prompts, but at most MOST: those with the smallest SHA-256, in the
    normal form of `held_out`. So no prompt is on both sides.
    """
    held_out = validation_texts({(normalise(example["prompt"]), "") for example in examples}, at_most=MOST)
    train = [example for example in examples if normalise(example["prompt"]) not in held_out]
    return train, [example for example in examples if normalise(example["prompt"]) in held_out]
