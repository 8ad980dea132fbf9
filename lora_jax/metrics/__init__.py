"""How good a model is, in numbers: of classes (`classification`), and of what it writes (`language`).

train/objective.py says which figures a kind of task has.
"""

# Figures of which less is more.
LOWER = ("loss", "perplexity")


def better(name: str, new: float, old: float) -> bool:
    """Whether `new` beats `old` as a figure called `name`."""
    return new < old if name in LOWER else new > old
