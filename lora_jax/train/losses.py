"""The losses of each row of a batch, computed in float32 at least.

The logits of a language model are its largest array: 8 texts of 512 tokens and a vocabulary of 49,152 take 0.8 GB in
float32. `token_cross_entropy` holds one chunk of them at a time, forward and backward.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from lora_jax.data.tokens import IGNORED


def cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], label_smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Returns -log softmax(logits)[label] of each row, in nats.

    Args:
      logits: minus infinity for a class that the task lacks.
      labels: the classes.
      label_smoothing: the weight of the mean of -log softmax(logits) over the classes that the task has, as in torch's
        CrossEntropyLoss. The label's own term has the rest of the weight.
    """
    logits = _to_float32(logits)
    return _smooth(optax.softmax_cross_entropy_with_integer_labels(logits, labels), logits, label_smoothing)


def squared_error(
    outputs: Float[Array, "batch values"], targets: Float[Array, "batch values"]
) -> Float[Array, " batch"]:
    """Returns the squared error of each row, averaged over its values."""
    return jnp.mean((_to_float32(outputs) - targets) ** 2, axis=-1)


def cosines(
    one: Float[Array, "batch width"], other: Float[Array, "candidates width"]
) -> Float[Array, "batch candidates"]:
    """Returns the cosine of every row of `one` with every row of `other`. All have length 1."""
    return jnp.matmul(_to_float32(one), _to_float32(other).T, precision=jax.lax.Precision.HIGHEST)


def cosine_squared_error(
    embeddings: Float[Array, "batch texts width"], targets: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """Returns the squared error of the cosine of each row's two texts, whose embeddings have length 1.

    This is sentence-transformers' CosineSimilarityLoss (Reimers & Gurevych, arXiv 1908.10084, section 3).
    """
    wide = _to_float32(embeddings)
    return ((wide[:, 0] * wide[:, 1]).sum(-1) - targets) ** 2


def multiple_negatives_ranking(
    embeddings: Float[Array, "batch texts width"], groups: Int[Array, " batch"], scale: float = 20.0
) -> Float[Array, " batch"]:
    """Returns -log of the probability that each row's anchor chooses its own positive, in nats.

    It chooses among the positives and the hard negatives of all rows, by a softmax of scaled cosines (Henderson et al.,
    arXiv 1705.00652, section 4.4; sentence-transformers' MultipleNegativesRankingLoss). The positives of other rows of
    its own group also suit it, and are left out.

    Args:
      embeddings: of length 1: each row's anchor, its positive and, if there are three texts, its hard negative.
      groups: rows of one group suit one another.
      scale: the inverse of the softmax's temperature.
    """
    rows, texts, width = embeddings.shape
    # The positives of all rows come first, then their hard negatives.
    candidates = embeddings[:, 1:].swapaxes(0, 1).reshape((texts - 1) * rows, width)
    suits = (groups[:, None] == groups) & ~jnp.eye(rows, dtype=bool)
    suits = jnp.pad(suits, ((0, 0), (0, (texts - 2) * rows)))
    logits = jnp.where(suits, -jnp.inf, scale * cosines(embeddings[:, 0], candidates))
    return cross_entropy(logits, jnp.arange(rows))


def token_cross_entropy(
    logits_of: Callable[[Float[Array, "batch some width"]], Float[Array, "batch some classes"]],
    hidden: Float[Array, "batch tokens width"],
    labels: Int[Array, "batch tokens"],
    chunk: int = 512,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, " batch"], Int[Array, " batch"], Int[Array, " batch"]]:
    """Returns for each row the sum of -log softmax(logits)[label], the number of labelled tokens and of correct ones.

    A token is correct if its label has the largest logit. The result is differentiable in `hidden` and in whatever
    `logits_of` closes over.

    The forward pass already takes the gradient with respect to a chunk's hidden states, so the logits are computed
    once. The backward pass computes them again only if parameters that `logits_of` closes over are trained.

    Args:
      logits_of: maps hidden states to logits, such as ``CausalLM.logits``. It gets about `chunk` positions at a time,
        the same positions of every row, and must treat each position independently.
      hidden: the last hidden states.
      labels: ``labels[:, t]`` is what position t predicts, or IGNORED.
      chunk: the number of positions whose logits exist at the same time.
      label_smoothing: as in `cross_entropy`.
    """
    batch, tokens, _ = hidden.shape
    chunks = -(-tokens // min(tokens, -(-chunk // batch)))
    size = -(-tokens // chunks)
    pure, consts = jax.closure_convert(logits_of, hidden[:, :size])
    losses, correct = _chunked(pure, size, label_smoothing, tuple(consts), hidden, labels)
    return losses.sum(-1), (labels != IGNORED).sum(-1), correct.sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(
    logits_of: Callable[..., Array],
    size: int,
    label_smoothing: float,
    consts: tuple[Any, ...],
    hidden: Float[Array, "batch tokens width"],
    labels: Int[Array, "batch tokens"],
) -> tuple[Float[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """Returns each token's loss (0 without a label) and whether it is correct, in chunks of `size` tokens."""

    def step(_, piece):
        return None, _losses(logits_of, label_smoothing, consts, *piece)

    _, out = jax.lax.scan(step, None, (_cut(hidden, size), _cut(labels, size, IGNORED)))
    return _join(out, labels.shape[1])


def _chunked_forward(logits_of, size, label_smoothing, consts, hidden, labels):
    trained = any(leaf.perturbed for leaf in jax.tree.leaves(consts, is_leaf=_is_primal))
    consts, hidden, labels = jax.tree.map(lambda leaf: leaf.value, (consts, hidden, labels), is_leaf=_is_primal)

    def step(_, piece):
        hidden, labels = piece
        losses, pull_back, correct = jax.vjp(
            lambda h: _losses(logits_of, label_smoothing, consts, h, labels), hidden, has_aux=True
        )
        return None, (losses, correct, *pull_back(jnp.ones_like(losses)))

    _, out = jax.lax.scan(step, None, (_cut(hidden, size), _cut(labels, size, IGNORED)))
    losses, correct, gradient = _join(out, labels.shape[1])
    return (losses, correct), (gradient, consts, (hidden, labels) if trained else None)


def _chunked_backward(logits_of, size, label_smoothing, residuals, cotangents):
    gradient, consts, inputs = residuals
    g = cotangents[0]
    to_hidden = (gradient * g[..., None]).astype(gradient.dtype)
    if inputs is None:
        return jax.tree.map(lambda _: None, consts), to_hidden, None
    hidden, labels = inputs

    def step(total, piece):
        hidden, labels, g = piece
        _, pull_back, _ = jax.vjp(
            lambda c: _losses(logits_of, label_smoothing, c, hidden, labels), consts, has_aux=True
        )
        return jax.tree.map(lambda sum, part: sum + part.astype(sum.dtype), total, *pull_back(g)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), consts)
    total, _ = jax.lax.scan(step, zeros, (_cut(hidden, size), _cut(labels, size, IGNORED), _cut(g, size)))
    return jax.tree.map(lambda sum, x: sum.astype(x.dtype), total, consts), to_hidden, None


_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _losses(logits_of, label_smoothing, consts, hidden, labels):
    logits = _to_float32(logits_of(hidden, *consts))
    labelled = labels != IGNORED
    # A sum with one term, not an indexed read: XLA would write all logits in float32 for it.
    picked = jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], logits, 0).sum(-1)
    losses = _smooth(jax.nn.logsumexp(logits, axis=-1) - picked, logits, label_smoothing)
    return jnp.where(labelled, losses, 0.0), labelled & (logits.argmax(-1) == labels)


def _smooth(
    losses: Float[Array, "*batch"], logits: Float[Array, "*batch classes"], label_smoothing: float
) -> Float[Array, "*batch"]:
    """Mixes each loss with the mean of -log softmax(logits) over the classes whose logit is not minus infinity."""
    if label_smoothing == 0:
        return losses
    present = logits > -jnp.inf
    mean = jnp.where(present, logits, 0).sum(-1) / present.sum(-1)
    return (1 - label_smoothing) * losses + label_smoothing * (jax.nn.logsumexp(logits, axis=-1) - mean)


def _cut(x: Float[Array, "batch tokens ..."], size: int, fill: int = 0) -> Float[Array, "chunks batch {size} ..."]:
    """Cuts the tokens into chunks of `size`. The rows remain an axis, because a device mesh would split along it."""
    batch, tokens, *rest = x.shape
    chunks = -(-tokens // size)
    x = jnp.pad(x, [(0, 0), (0, chunks * size - tokens), *[(0, 0)] * len(rest)], constant_values=fill)
    return jnp.moveaxis(x.reshape(batch, chunks, size, *rest), 1, 0)


def _join(tree: Any, tokens: int) -> Any:
    """Undoes `_cut`."""

    def join(x):
        chunks, batch, size, *rest = x.shape
        return jnp.moveaxis(x, 0, 1).reshape(batch, chunks * size, *rest)[:, :tokens]

    return jax.tree.map(join, tree)


def _to_float32(x: Array) -> Array:
    """Widens `x` to float32, and leaves float64 as it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
