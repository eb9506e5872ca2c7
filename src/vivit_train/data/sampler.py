"""The batch sampler, which assigns clips to ranks and optimizer steps."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

Key = tuple[int, int, int]  # epoch, repeat within the epoch, row of the manifest


class GlobalBatchSampler(Sampler[list[Key]]):
    """A sampler of one rank's micro-batches; the clips of an optimizer step depend only on (seed, epoch).

    Each optimizer step takes the next `global_batch_size` clips of the epoch's order, for any number of ranks. The
    micro-batches of a step go to rank 0, 1, ... in turn. An epoch has floor(clips / global_batch_size) steps. A
    data set smaller than the global batch has one step, in which its clips repeat with other random draws.

    Args:
        n: The number of videos.
        global_batch_size: The number of clips per optimizer step, over all ranks.
        micro_batch_size: The number of clips per micro-batch.
        rank: The rank of this process.
        world_size: The number of ranks.
        seed: The seed of the order.
        weights: The sampling weight of each video, [n], for an order drawn with replacement. None shuffles the
            videos and takes each once.
        clips_per_video: The number of clips per key.
        first: The epoch, and the step within it, at which a resumed run starts.
    """

    def __init__(
        self,
        n: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        clips_per_video: int = 1,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.n, self.rank, self.world_size, self.seed, self.weights = n, rank, world_size, seed, weights
        self.step_videos, self.micro_videos = (
            global_batch_size // clips_per_video,
            micro_batch_size // clips_per_video,
        )
        self.steps = steps_per_epoch(n, self.step_videos)
        # The epoch must be right from the start: Lightning sets it only after the workers of a resumed run have
        # fetched their first batches.
        self.first, self.epoch = first, first[0]

    @property
    def sampler(self) -> "GlobalBatchSampler":
        return self  # Lightning calls `set_epoch` on a batch sampler's `sampler`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulation

    @property
    def accumulation(self) -> int:
        """The number of micro-batches per optimizer step on this rank."""
        return self.step_videos // (self.micro_videos * self.world_size)

    def order(self) -> NDArray[np.int64]:
        """Returns the rows of the epoch's videos in order, int64 [steps * videos per step]."""
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
            keys.append((self.epoch, seen[row], row))  # the repeat count gives a repeated video other random draws
            seen[row] += 1
        done = self.first[1] * self.accumulation if self.epoch == self.first[0] else 0
        for micro in range(done, len(self)):
            start = (micro * self.world_size + self.rank) * self.micro_videos
            yield keys[start : start + self.micro_videos]


def steps_per_epoch(n: int, global_batch_size: int) -> int:
    """Returns the number of optimizer steps for `n` clips; an incomplete last batch is dropped."""
    return max(1, n // global_batch_size)


def split_batch(
    global_batch_size: int, max_micro_batch_size: int, devices: int, clips_per_video: int = 1
) -> tuple[int, int]:
    """Returns the largest micro-batch that divides a device's share of the global batch, and how many it takes.

    Args:
        global_batch_size: The number of clips per optimizer step, over all devices.
        max_micro_batch_size: The largest number of clips in one forward pass on one device.
        devices: The number of devices of the whole job.
        clips_per_video: The number of clips per decoded video; a micro-batch never divides them.

    Raises:
        UserError: The numbers do not divide one another.
    """
    if global_batch_size % devices:
        raise UserError(f"global_batch_size={global_batch_size} is not divisible by {plural(devices, 'device')}")
    per_device, clips = global_batch_size // devices, clips_per_video
    if per_device % clips or clips > max_micro_batch_size:
        raise UserError(
            f"data.clips_per_video={clips} must divide the {per_device} clips of a step on each device "
            f"(global_batch_size) and must not exceed micro_batch_size={max_micro_batch_size}"
        )
    micro = max(m for m in range(clips, max_micro_batch_size + 1, clips) if per_device % m == 0)
    return micro, per_device // micro


def check_split(global_batch_size: int, micro_batch_size: int, micro_batches: int) -> None:
    """Checks that the micro-batches of all devices add up to the global batch.

    Raises:
        UserError: They do not.
    """
    if micro_batches * micro_batch_size != global_batch_size:
        raise UserError(
            f"global_batch_size={global_batch_size} is not {plural(micro_batches, 'micro-batch')} of "
            f"micro_batch_size={micro_batch_size}: vivit_train.data.sampler.split_batch chooses "
            "micro_batch_size and Trainer(accumulate_grad_batches=...)"
        )
