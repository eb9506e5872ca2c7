"""Heads on frozen features: a grid of poolings and weight decays, chosen by cross-validation, and baselines.

Shape suffixes: N clips, s regions of a frame, L the side of small frames, K classes.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivit_train.models.probe import Input, Motion, Pooling, Space, Time, head_for, mirrored, pooled
from vivit_train.training.attentive import cross_validate_attentive, fit_attentive, random_batches
from vivit_train.training.linear import MOST_DIRECTIONS, Standardized, cross_validate, fit

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)
TIMES: tuple[Time, ...] = ("mean", "mean_std", "mean_diff", "ordered", "differences", "attentive")
# These have won somewhere, so that they are also tried after fewer than all layers, and on the foreground.
BEST_TIMES: tuple[Time, ...] = ("mean_std", "ordered", "differences")
MOTIONS: tuple[Motion, ...] = ("none", "map")
STEPS, BATCH = 200, 32  # Training of the tiny model that sees only motion.


@dataclass(frozen=True)
class Features:
    """The features of clips.

    Attributes:
        regions: Those of `FrameProbe.regions`, [N, t, s, D], by the input and the number of layers.
        luma: The small frames of `luminance`, [N, T, L, L].
        labels: The class ids, [N].
        flip: Whether a clip and its mirror image have the same class.
    """

    regions: dict[tuple[Input, int], Tensor]
    luma: Tensor
    labels: Tensor
    flip: bool = False

    def pooled(self, pooling: Pooling) -> Tensor:
        """Returns the features of the clips by a pooling, [N, E].

        With `flip`, they are the mean of those of a clip and of its mirror image. A linear head that is fitted to
        them has the same logits for both, as it would if both were training clips.
        """
        seen = pooling.space != "none"
        regions = self.regions[pooling.input, pooling.layers or 0] if seen else self.luma
        x_NE = pooled(regions, self.luma, pooling)
        if not self.flip or pooling.time == "attentive":
            return x_NE
        other = mirrored(regions) if seen else self.luma
        return (x_NE + pooled(other, self.luma.flip(-1), pooling)) / 2

    @property
    def width(self) -> int:
        """The width of a token of `regions`."""
        return next(iter(self.regions.values())).shape[-1]


@dataclass(frozen=True)
class Choice:
    """The weight decay that cross-validation chooses for a pooling.

    Attributes:
        pooling: The pooling.
        decay: The weight decay.
        right: The number of training clips that are classified correctly when their fold is held out.
        loss: The mean cross-entropy of the clips that are held out.
    """

    pooling: Pooling
    decay: float
    right: int
    loss: float

    @property
    def described(self) -> str:
        """What the head sees, and its weight decay, such as "grid after 8 layers + motion, decay 0.01"."""
        pooling = self.pooling
        how = f", {pooling.time}" if pooling.input == "foreground" else ""
        parts = [] if pooling.space == "none" else [f"{pooling.space} after {pooling.layers} layers{how}"]
        seen = " + ".join([*parts, *["motion"] * (pooling.motion == "map")])
        return f"{seen}, decay {self.decay:g}".removeprefix(", ")

    @property
    def rank(self) -> tuple[int, float]:
        """The order of choices: more clips right, then a smaller loss."""
        return self.right, -self.loss


def poolings(spaces: Sequence[Space], layers: Sequence[int], by_frame: bool) -> dict[str, list[Pooling]]:
    """Returns the poolings of each row of the table by its name; the first rows are baselines.

    Args:
        spaces: The features of a frame that the model has.
        layers: The numbers of layers after which they are known, the last of which is all.
        by_frame: Whether the model sees each frame by itself. Otherwise no frame shows appearance alone, and the
            class token, if any, is that of the clip, which has no order.
    """
    *lower, top = layers
    named = {
        "motion": [Pooling("none", "mean", "energy")],
        "motion in regions": [Pooling("none", "mean", "map")],
    }
    if by_frame:
        named |= {
            "appearance": [Pooling(space, "middle", layers=top) for space in spaces],
            "appearance and motion": [Pooling(space, "middle", "energy", top) for space in spaces],
        }
    for time in TIMES:
        motions = MOTIONS[:1] if time == "attentive" else MOTIONS
        named[time] = [
            Pooling(space, time, motion, top)
            for space in spaces
            for motion in motions
            if by_frame or space != "cls" or time == "mean"
        ]
        if time in BEST_TIMES:
            named[time] += [Pooling("grid", time, motion, number) for number in lower for motion in motions]
    named["foreground"] = [
        Pooling("grid", time, layers=number, input="foreground") for time in BEST_TIMES for number in layers
    ]
    return named


def logits_held_out(
    train: Features, pooling: Pooling, num_classes: int, decays: Sequence[float], fold_N: Tensor
) -> Tensor:
    """Returns the logits of each clip by the head that has not seen its fold, [decays, N, K]."""
    x_NE, label_N = train.pooled(pooling), train.labels
    if pooling.time == "attentive":
        return cross_validate_attentive(x_NE, train.width, label_N, num_classes, decays, fold_N)
    return cross_validate(Standardized.of(x_NE).x, label_N, num_classes, decays, fold_N)


def choose(train: Features, pooling: Pooling, num_classes: int, fold_N: Tensor) -> Choice:
    """Returns the weight decay with which most held-out clips are classified correctly, ties by the loss."""
    logits = logits_held_out(train, pooling, num_classes, DECAYS, fold_N)
    choices = [
        Choice(
            pooling,
            decay,
            int((logits_NK.argmax(1) == train.labels).sum()),
            F.cross_entropy(logits_NK, train.labels).item(),
        )
        for decay, logits_NK in zip(DECAYS, logits, strict=True)
    ]
    return max(choices, key=lambda choice: choice.rank)


def choose_each(
    train: Features, poolings: Sequence[Pooling], num_classes: int, fold_N: Tensor
) -> Iterator[Choice]:
    """Yields the choice of each pooling, in order.

    With few clips, each is computed in a thread of its own: torch's threads wait for each other longer than the
    small operations take. With many clips, operations are large, and the random projections of `Standardized`
    need an order.
    """
    threads, few = torch.get_num_threads(), len(train.labels) <= MOST_DIRECTIONS
    with torch_threads(1 if few else threads):
        pool = ThreadPoolExecutor(threads if few else 1)
        try:
            yield from pool.map(lambda pooling: choose(train, pooling, num_classes, fold_N), poolings)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Sets the number of torch's threads in this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_held_out_right(train: Features, choices: Sequence[Choice], num_classes: int, fold_N: Tensor) -> int:
    """Returns the number of held-out clips that the mean of the logits of heads classifies correctly."""
    logits = [logits_held_out(train, one.pooling, num_classes, [one.decay], fold_N)[0] for one in choices]
    return int((torch.stack(logits).mean(0).argmax(1) == train.labels).sum())


def mean_head(train: Features, choices: Sequence[Choice], num_classes: int) -> nn.Module:
    """Returns one head on `pooled_by_all` whose logits are the mean of those of the heads of all choices."""
    heads = [head_of(train, choice, num_classes) for choice in choices]
    if len(heads) == 1:
        return heads[0]
    linear = [head for head in heads if isinstance(head, nn.Linear)]
    head = nn.Linear(sum(one.in_features for one in linear), num_classes)
    weight = torch.cat([one.weight for one in linear], dim=1) / len(linear)
    head.load_state_dict({"weight": weight, "bias": torch.stack([one.bias for one in linear]).mean(0)})
    return head.requires_grad_(False)


def head_of(train: Features, choice: Choice, num_classes: int) -> nn.Module:
    """Returns the head, as in `FrameProbe`, that is fitted to all training clips."""
    x_NE, label_N, everything = train.pooled(choice.pooling), train.labels, torch.ones(1, len(train.labels))
    head = head_for(choice.pooling.time, x_NE.shape[1], train.width, num_classes)
    if choice.pooling.time == "attentive":
        net = fit_attentive(x_NE, train.width, label_N, num_classes, [choice.decay], everything)
        head.load_state_dict({name: x[0] for name, x in net.items()})
    else:
        standardized = Standardized.of(x_NE)
        weight, bias = fit(standardized.x, label_N, num_classes, [choice.decay], everything)
        head.load_state_dict(dict(zip(("weight", "bias"), standardized.head(weight[0], bias[0]), strict=True)))
    return head.requires_grad_(False)


def pooled_by_all(features: Features, choices: Sequence[Choice]) -> Tensor:
    """Returns the features of the clips for a `mean_head`, [N, E], in the order of the choices."""
    return torch.cat([features.pooled(choice.pooling) for choice in choices], dim=1)


def num_right(test: Features, choices: Sequence[Choice], head: nn.Module) -> int:
    """Returns the number of clips that a `mean_head` classifies correctly."""
    return int((head(pooled_by_all(test, choices)).argmax(1) == test.labels).sum())


class MotionNet(nn.Sequential):
    """A tiny convolutional network on the differences of small frames, [B, T, L, L] -> [B, K]."""

    def __init__(self, frames: int, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(frames - 1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )

    def forward(self, luma_BTLL: Tensor) -> Tensor:
        logits: Tensor = super().forward(luma_BTLL.diff(dim=1))
        return logits


def train_motion_net(luma_NTLL: Tensor, label_N: Tensor, num_classes: int, seed: int, flip: bool) -> MotionNet:
    """Returns a `MotionNet` trained from random weights for the same steps on any data; see `Features.flip`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MotionNet(luma_NTLL.shape[1], num_classes)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
        for batch in itertools.islice(random_batches(len(label_N), BATCH), STEPS):
            luma = luma_NTLL[batch]
            if flip:
                luma = torch.where(torch.rand(len(luma), 1, 1, 1) < 0.5, luma.flip(3), luma)
            optimizer.zero_grad()
            F.cross_entropy(net(luma), label_N[batch]).backward()
            optimizer.step()
            schedule.step()
    return net


def motion_net_scores(
    train: Features, test: Features, num_classes: int, fold_N: Tensor, seed: int
) -> tuple[int, int]:
    """Returns how many training clips, when held out, and how many test clips a `MotionNet` has right."""

    def right(seen: Tensor, luma_NTLL: Tensor, label_N: Tensor) -> int:
        net = train_motion_net(train.luma[seen], train.labels[seen], num_classes, seed, train.flip)
        with torch.inference_mode():
            return int((net(luma_NTLL).argmax(1) == label_N).sum())

    held_out = [fold_N == fold for fold in range(int(fold_N.max()) + 1)]
    with torch_threads(1):  # The network is so small that a second thread only costs time.
        validated = sum(right(~rows, train.luma[rows], train.labels[rows]) for rows in held_out)
        return validated, right(torch.ones_like(fold_N, dtype=torch.bool), test.luma, test.labels)
