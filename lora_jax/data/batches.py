"""Batches of a pack: each run has its own examples, and at the same step all runs have the same shape.

A compiled step has one length, so examples are padded to the length of a *bucket*. The bucket of a step depends on the
epoch alone. Which examples fill it depends on the run's seed and the epoch. So runs of different seeds share one
program, and a run sees the same batches alone as in any pack.
"""

import collections
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped, UInt64

from lora_jax.data.tokens import IGNORED, Batch
from lora_jax.errors import UserError

AHEAD = 8  # batches that are made before they are needed


class EncodedSplit(Protocol):
    """The examples of a split as arrays.

    ``tokens.Encoded`` holds texts, ``masking.MaskedTexts`` texts to mask, ``images.EncodedImages`` images, and
    ``sentence_pairs.EncodedTuples`` two or three texts an example, each encoded by itself.
    """

    @property
    def max_length(self) -> int:
        """No example is longer."""
        ...

    @property
    def labels(self) -> Shaped[np.ndarray, "..."]:
        """The labels, as the task's objective reads them."""
        ...

    @property
    def no_label(self) -> int:
        """The label of a row that only fills a batch up."""
        ...

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """The length of each example, in tokens; 1 for an image."""
        ...

    def __len__(self) -> int: ...

    def padded(self, examples: Int[np.ndarray, "*batch"], length: int, pad_id: int) -> Batch:
        """Returns these examples, cut or padded on the right to `length`."""
        ...

    def drawn(
        self, examples: Int[np.ndarray, "runs batch"], length: int, pad_id: int, *, seeds: Sequence[int], step: int
    ) -> Batch:
        """Returns these examples to train on.

        Augmentation and other randomness depend on the run's seed and the step alone.
        """
        ...


@dataclass(frozen=True)
class Buckets:
    """The lengths in tokens that examples are padded to: each example to the smallest that holds it."""

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.lengths), self.lengths, strict=False))
        if not self.lengths or not rising:
            raise UserError(
                f"task.buckets={self.lengths}: expected lengths from the shortest to the longest, like 16,32,64"
            )

    @classmethod
    def chosen(cls, lengths: Int[np.ndarray, " examples"], max_length: int, *, most: int = 3) -> "Buckets":
        """Returns the buckets with the least padding for examples of these lengths, all multiples of 8.

        Each is a program to compile, so there are at most `most`, and one more only if it saves a tenth of the tokens.
        """
        ends = np.unique(np.minimum(-(-np.append(lengths, 1) // MULTIPLE) * MULTIPLE, max_length))
        counts = np.bincount(np.searchsorted(ends, lengths), minlength=len(ends))
        above = np.concatenate([[0], np.cumsum(counts)])
        # tokens[i]: the least tokens of the examples up to ends[i], and the buckets that have them.
        tokens: list[tuple[int, tuple[int, ...]]] = [
            (int(above[i + 1] * end), (int(end),)) for i, end in enumerate(ends)
        ]
        best = tokens[-1]
        for _ in range(1, most):
            tokens = [
                min(
                    (tokens[j][0] + int((above[i + 1] - above[j + 1]) * end), (*tokens[j][1], int(end)))
                    for j in range(i)
                )
                if i
                else tokens[0]
                for i, end in enumerate(ends)
            ]
            if tokens[-1][0] > 0.9 * best[0]:
                break
            best = tokens[-1]
        return cls(tuple(dict.fromkeys(best[1])))

    def of(self, encoded: EncodedSplit) -> Int64[np.ndarray, " examples"]:
        """Returns the index in `lengths` of each example's bucket; UserError if the longest bucket is too short."""
        if self.lengths[-1] < min(encoded.max_length, encoded.lengths.max(initial=0)):
            raise UserError(
                f"task.buckets={self.lengths}: texts are cut to {encoded.max_length} tokens; the longest bucket must "
                f"hold as many"
            )
        return np.searchsorted(self.lengths, encoded.lengths)


MULTIPLE = 8  # of the lengths that are chosen from the data


class EvalBatch(NamedTuple):
    """Examples in a fixed order. Rows that only fill the batch up have `weight` 0 and `index` -1."""

    batch: Batch
    weight: Float32[np.ndarray, " batch"]
    index: Int64[np.ndarray, " batch"]  # type: ignore[assignment]  # hides tuple.index, which nothing here calls


class TrainBatches:
    """The training batches of a pack: ``batches[step]`` is the `Batch` of that step, for any step from 0.

    In each epoch a run's examples are sorted by bucket, in random order within a bucket, and cut into batches of
    `batch`. Each batch is padded to the bucket of its longest example. The batches are then shuffled, in the same way
    for all runs. So the last examples of a bucket may fill up a batch of the next bucket, and every example is seen
    once, except for ``len(encoded) % batch`` of them. Those are drawn from the fullest buckets, anew for each run and
    epoch, so no example is always left out.

    Any step can be read at any time: nothing depends on the steps read before.

    Raises:
      UserError: `encoded` does not fill one batch, or `buckets` do not fit it.
    """

    def __init__(
        self, encoded: EncodedSplit, *, batch: int, buckets: tuple[int, ...], seeds: Sequence[int], pad_id: int = 0
    ):
        if not 1 <= batch <= len(encoded):
            raise UserError(f"batch={batch}: must be from 1 to the {len(encoded)} training examples")
        if not seeds or min(seeds) < 0:
            raise UserError(f"seeds={tuple(seeds)}: expected one for each run, none negative")
        self.encoded, self.batch, self.pad_id = encoded, batch, pad_id
        self.seeds = tuple(seeds)
        self.buckets = Buckets(tuple(buckets))
        self._bucket = self.buckets.of(encoded)
        self._used = used_per_bucket(np.bincount(self._bucket, minlength=len(self.buckets.lengths)), batch)
        longest = np.repeat(self.buckets.lengths, self._used)[batch - 1 :: batch]
        self._batch_lengths: Int[np.ndarray, " steps_per_epoch"] = longest
        # Two epochs, because prefetching reads the next one early.
        self._schedule = functools.lru_cache(maxsize=2)(self._draw_schedule)
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._batch_lengths)

    def lengths(self) -> tuple[int, ...]:
        """Returns the padded lengths that occur, each at least once in every epoch."""
        return tuple(np.unique(self._batch_lengths).tolist())

    def length_at(self, step: int) -> int:
        """Returns the padded length of a step, which is the same for every run and seed."""
        epoch, within = self._place(step)
        return int(self._batch_lengths[self._schedule(epoch)[within]])

    def __getitem__(self, step: int) -> Batch:
        return self.at(step, self.length_at(step))

    def at(self, step: int, length: int) -> Batch:
        """Returns the batch of a step, padded to a `length` of its own or above."""
        epoch, within = self._place(step)
        start = self._schedule(epoch)[within] * self.batch
        examples = self._order(epoch)[:, start : start + self.batch]
        return self.encoded.drawn(examples, length, self.pad_id, seeds=self.seeds, step=step)

    def example(self, length: int) -> Batch:
        """Returns a batch of the shapes that a step with this padded length has."""
        return self.at(0, length)

    def _place(self, step: int) -> tuple[int, int]:
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        return divmod(step, self.steps_per_epoch)

    def _draw_schedule(self, epoch: int) -> Int[np.ndarray, " steps_per_epoch"]:
        return _shuffled(self.steps_per_epoch, 0, epoch)

    def _draw_order(self, epoch: int) -> Int[np.ndarray, "runs used"]:
        drawn = {seed: self._draw_run(seed, epoch) for seed in set(self.seeds)}
        return np.stack([drawn[seed] for seed in self.seeds])

    def _draw_run(self, seed: int, epoch: int) -> Int[np.ndarray, " used"]:
        shuffled = _shuffled(len(self.encoded), 1, epoch, seed)
        order = shuffled[np.argsort(self._bucket[shuffled], kind="stable")]
        ends = np.cumsum(np.bincount(self._bucket, minlength=len(self._used)))
        starts = ends - np.diff(ends, prepend=0)
        return np.concatenate([order[a : a + n] for a, n in zip(starts, self._used, strict=True)])


class EvalBatches:
    """A sequence of `EvalBatch`: every example once, sorted by length, padded to the smallest bucket that holds it."""

    def __init__(self, encoded: EncodedSplit, *, batch: int, buckets: tuple[int, ...], pad_id: int = 0):
        if batch < 1:
            raise UserError(f"batch={batch}: must be at least 1")
        self.encoded, self.batch, self.pad_id = encoded, batch, pad_id
        self.buckets = Buckets(tuple(buckets))
        bucket = self.buckets.of(encoded)
        order = np.argsort(encoded.lengths, kind="stable")
        self._rows: list[Int64[np.ndarray, " batch"]] = []
        self._lengths: list[int] = []
        for i, length in enumerate(self.buckets.lengths):
            members = order[bucket[order] == i]
            for start in range(0, len(members), batch):
                rows = members[start : start + batch]
                self._rows.append(np.pad(rows, (0, batch - len(rows)), constant_values=-1))
                self._lengths.append(length)

    def __len__(self) -> int:
        return len(self._rows)

    def lengths(self) -> tuple[int, ...]:
        """Returns the padded lengths that occur."""
        return tuple(sorted(set(self._lengths)))

    def __getitem__(self, i: int) -> EvalBatch:
        index = self._rows[i]
        real = index >= 0
        batch = self.encoded.padded(np.maximum(index, 0), self._lengths[i], self.pad_id)
        batch.tokens[~real], batch.mask[~real] = self.pad_id, False
        # Models divide by the number of tokens, so a row that only fills the batch up has one padding token.
        batch.mask[~real, ..., 0] = True
        batch.labels[~real] = self.encoded.no_label
        if batch.types is not None:
            batch.types[~real] = 0
        return EvalBatch(batch, real.astype(np.float32), index)

    def example(self, length: int) -> Batch:
        """Returns a batch of the shapes that batches with this padded length have."""
        return self.encoded.padded(np.zeros(self.batch, int), length, self.pad_id)

    def restore(self, rows: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
        """Joins arrays computed from each batch, whose rows lie along `axis`, into one in the order of the examples.

        Arrays with values for each token are padded with IGNORED to the longest.
        """
        index = np.concatenate([np.zeros(0, np.int64), *self._rows])
        real = np.flatnonzero(index >= 0)
        longest = np.max([array.shape for array in rows], axis=0)
        padded = [
            np.pad(
                array,
                [(0, 0 if i == axis else longest[i] - size) for i, size in enumerate(array.shape)],
                constant_values=IGNORED,
            )
            for array in rows
        ]
        return np.take(np.concatenate(padded, axis), real[np.argsort(index[real])], axis)


class StepBatches(Protocol):
    """The training batches of a pack by step."""

    def __getitem__(self, step: int) -> Batch: ...


def prefetch(batches: StepBatches, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps `start` to `stop` - 1, made a few steps ahead in a thread."""
    thread = ThreadPoolExecutor(max_workers=1)  # grain, which does this too, takes 1.5 s to import
    try:
        steps = iter(range(start, stop))
        made = collections.deque(thread.submit(batches.__getitem__, step) for step in itertools.islice(steps, AHEAD))
        while made:
            batch = made.popleft().result()
            made.extend(thread.submit(batches.__getitem__, step) for step in itertools.islice(steps, 1))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def used_per_bucket(counts: Int[np.ndarray, " buckets"], batch: int) -> Int[np.ndarray, " buckets"]:
    """Returns how many examples of each bucket an epoch uses: all but the remainder, taken from the fullest buckets."""
    used = counts.copy()
    for _ in range(counts.sum() % batch):
        used[used.argmax()] -= 1
    return used


def drawn_bits(shape: tuple[int, ...], *key: int) -> UInt64[np.ndarray, "..."]:
    """Returns random bits, fixed by `key`. Its first number says what they are for: 0 and 1 are taken by shuffling."""
    # Raw bits, because numpy may change what its other methods draw.
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(math.prod(shape)).reshape(shape)


def _shuffled(n: int, *key: int) -> Int[np.ndarray, " n"]:
    """Returns a permutation of range(n), fixed by `key`."""
    return np.argsort(drawn_bits((n,), *key), kind="stable")
