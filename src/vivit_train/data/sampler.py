"""Which clips each process takes in each step."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Key = tuple[int, int, int]  # epoch, repeat within the epoch, row of the manifest


class GlobalBatchSampler(Sampler[list[Key]]):
    """One process's micro-batches of an epoch, a pure function of (seed, epoch).

    Each optimizer step takes the next `global_batch` clips of the epoch's order, whatever the number of
    processes: its micro-batches, in turn, go to rank 0, 1, .... An epoch has floor(clips / global_batch) steps; a
    set smaller than the global batch fills its one step by coming round again, with other draws.

    Args:
        first: the epoch and the step in it to start from, in a run that goes on from a checkpoint.
        weights: of each video, for an order drawn with replacement; None: each once, shuffled.
        clips_per_video: how many clips a key stands for.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        clips_per_video: int = 1,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.n, self.rank, self.world_size, self.seed, self.weights = n, rank, world_size, seed, weights
        self.step_videos, self.micro_videos = global_batch // clips_per_video, micro_batch // clips_per_video
        self.steps = steps_per_epoch(n, self.step_videos)
        # Lightning sets the epoch after the workers of a resumed run have asked for their first batches
        self.first, self.epoch = first, first[0]

    @property
    def sampler(self) -> "GlobalBatchSampler":
        return self  # Lightning calls `set_epoch` of a batch sampler's `sampler`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulation

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process in a step."""
        return self.step_videos // (self.micro_videos * self.world_size)

    def order(self) -> NDArray[np.int64]:
        """The videos of the epoch."""
        needed = self.steps * self.step_videos
        if self.weights is not None:
            share = self.weights / self.weights.sum()
            return np.random.default_rng((self.seed, self.epoch)).choice(self.n, needed, p=share)
        rounds = range(-(-needed // self.n))
        orders = [np.random.default_rng((self.seed, self.epoch, i)).permutation(self.n) for i in rounds]
        return np.concatenate(orders)[:needed]

    def __iter__(self) -> Iterator[list[Key]]:
        seen: Counter[int] = Counter()
        keys = []
        for row in self.order().tolist():
            keys.append((self.epoch, seen[row], row))  # a video that comes again has other draws
            seen[row] += 1
        done = self.first[1] * self.accumulation if self.epoch == self.first[0] else 0
        for micro in range(done, len(self)):
            start = (micro * self.world_size + self.rank) * self.micro_videos
            yield keys[start : start + self.micro_videos]


def steps_per_epoch(n: int, global_batch: int) -> int:
    return max(1, n // global_batch)
