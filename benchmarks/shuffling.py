"""From how many episodes 100 batches of 16 come: drawing from several shards at once, against an ideal shuffle.

    python benchmarks/shuffling.py

Only orders are computed, of shards as those of fractal: 85 episodes in each, of 43 steps on average.
- buffer:    what `open_shards` did before: shard after shard in random order, each sample put off by a random time that
             a buffer of 1,000 samples on average allows.
- together:  `interleave=64`, its default; and 16 and 256.
- ideal:     a permutation of all samples.
The share is the least of all runs of 100 batches in the epoch, against the mean of the ideal.
"""

import resource
import time

import numpy as np

from pixel160k.read.order import interleaved

EPISODES_PER_SHARD, STEPS = 85, (20, 67)
BATCHES, BATCH = 100, 16


def with_buffer(lengths: list[int], held: int, generator: np.random.Generator) -> np.ndarray:
    """The order of a shuffle buffer behind shards in random order, int64 (samples,)."""
    starts = np.cumsum([0, *lengths])
    front = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in generator.permutation(len(lengths))])
    put_off = np.arange(len(front)) + generator.random(len(front)) * (2 * held)
    return front[np.argsort(put_off, kind="stable")]


def seen(of_sample: np.ndarray, order: np.ndarray) -> list[int]:
    """The number of episodes in each run of 100 batches of an epoch."""
    size = BATCHES * BATCH
    starts = range(0, len(order) - size + 1, max(size, len(order) // 100))
    return [len(np.unique(of_sample[order[start : start + size]])) for start in starts]


def main() -> None:
    """Compute and print."""
    for episodes in (510, 87_212):
        generator = np.random.default_rng(0)
        steps = generator.integers(*STEPS, episodes)
        of_sample = np.repeat(np.arange(episodes, dtype=np.int32), steps)
        lengths = [
            int(steps[first : first + EPISODES_PER_SHARD].sum()) for first in range(0, episodes, EPISODES_PER_SHARD)
        ]
        kept = [np.ones(length, bool) for length in lengths]
        ideal = np.mean(seen(of_sample, generator.permutation(len(of_sample))))
        print(f"{episodes} episodes, {len(of_sample)} samples, {len(lengths)} shards: ideal {ideal:.0f} episodes")
        for name, lanes in (("buffer", 0), ("together, 16", 16), ("together, 64", 64), ("together, 256", 256)):
            began = time.process_time()
            order = interleaved(kept, lanes, generator) if lanes else with_buffer(lengths, 1000, generator)
            taken = time.process_time() - began
            found = seen(of_sample, order)
            print(
                f"  {name:14s}{min(found):5d} to {max(found):5d}   {min(found) / ideal:6.1%} of ideal   {taken:5.2f} s"
            )
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
