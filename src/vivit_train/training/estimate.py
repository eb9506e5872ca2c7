"""Estimates, before the first step, how long training takes on this machine."""

import time

import lightning as L
import torch

from vivit_train.data.clip_size import SMALL
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.training.task import VideoTask
from vivit_train.utils.process_pool import usable_cores

SHORT_S = 0.5  # If one clip takes less, a whole micro-batch is measured, too: it takes less time per clip.
SAMPLE = 4  # The loading of so many clips is timed.


def estimate_seconds(task: VideoTask, data: VideoDataModule, trainer: L.Trainer, steps: int) -> float | None:
    """Returns the estimated time of `steps` training steps in seconds, without validation.

    A forward and backward pass on noise is timed, and the loading of a few clips; that of stored features takes no
    time. On a CPU, the loader's processes and the model share the cores, so their times add up; a GPU waits only
    for the slower of the two. The state of the model and of the random number generators stays as it is.

    Returns:
        None with several processes, whose steps cannot be measured here, or if memory runs out.

    Raises:
        UserError: A loader process dies. The message names the video that it was reading.
    """
    if trainer.world_size > 1:
        return None
    device = trainer.strategy.root_device
    try:
        compute_s = clip_seconds(task, data, trainer)
    except RuntimeError:  # Memory ran out. Training will say so, and what to do about it.
        return None
    with data.translate_worker_errors():
        load_s = loading_seconds(data) / usable_cores() if task.reads_videos else 0.0
    clip_s = compute_s + load_s if device.type == "cpu" else max(compute_s, load_s)
    return steps * data.global_batch_size * clip_s


def clip_seconds(task: VideoTask, data: VideoDataModule, trainer: L.Trainer) -> float:
    """Returns the time of a forward and backward pass per clip, in seconds."""
    device = trainer.strategy.root_device
    task.to(device)

    def one_pass(clips: int) -> float:
        inputs = task.noise(clips)
        start_s = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            loss = task(inputs).float().sum()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start_s) / clips

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seconds = one_pass(1)
        if seconds < SHORT_S:  # The first pass allocates memory, which counts in short passes.
            seconds = min(one_pass(clips) for clips in (1, data.micro_batch_size))
    task.zero_grad(set_to_none=True)
    return seconds


def loading_seconds(data: VideoDataModule) -> float:
    """Returns the time in which one loader process reads and augments a training clip, in seconds."""
    rows = torch.randperm(len(data.splits.train), generator=torch.Generator().manual_seed(data.seed))[: 1 + SAMPLE]
    keys = [[(0, 0, row)] for row in rows.tolist()]
    workers = 0 if data.num_workers == 0 else 1
    loader = data.loader(data.train_dataset(data.splits.train), num_workers=workers, batch_sampler=keys)
    batches = iter(loader)
    next(batches)  # It includes the start of the process.
    start_s = time.perf_counter()
    read = sum(len(batch["label"]) for batch in batches if "label" in batch)
    return (time.perf_counter() - start_s) / read if read else 0.0


def duration(seconds: float) -> str:
    """Formats an estimated time in words: "less than a minute", "about 16 min" or "about 5 h 10 min"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"about {hours} h {minutes} min"
    return f"about {minutes} min" if minutes else "less than a minute"


def faster(seconds: float, *, frames: int, crop: int, size: str | None, max_epochs: int) -> str:
    """Returns the keys that bring a long run below an hour, most effective first.

    Args:
        seconds: The estimated time of the run.
        frames: The frames of a clip.
        crop: The side of a clip in pixels.
        size: The size of the model, such as "B"; None for a model of the user's own.
        max_epochs: The epochs of the run.
    """
    keys = []
    if frames > SMALL.frames:
        keys.append(f"data.frames={SMALL.frames}")
    if crop > SMALL.crop:
        keys.append(f"data.crop={SMALL.crop} data.short_side={SMALL.short_side}")
    if size not in (None, "Ti"):
        keys.append("model.size=Ti")
    epochs = int(max_epochs * 3600 / seconds)
    if epochs:
        keys.append(f"trainer.max_epochs={epochs}")
    return ", ".join(keys)
