"""Translates errors of torch and Lightning into messages that say what failed and what to do."""

import logging
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.utils.errors import OutOfMemoryError, UserError, reason
from vivit_train.utils.text import plural


def missing_checkpoint(trainer: L.Trainer, best: str) -> str:
    """Returns the final message of a run whose best checkpoint is missing and cannot be scored."""
    why = getattr(trainer.strategy.checkpoint_io, "failure", "") or f"{best} is gone"
    folder = Path(best).parent
    left = ", ".join(sorted(path.name for path in folder.glob("*.ckpt"))) or "no checkpoint"
    return (
        f"training finished, but its best checkpoint was not saved and cannot be scored ({why}). {folder} holds "
        f"{left}; metrics.csv has the scores of each epoch. Free some disk space; resume=auto in this folder "
        "then resumes from there"
    )


FIRST_STEPS = 10  # A run that has done fewer steps may restart with a smaller micro-batch.


@contextmanager
def translate_out_of_memory(data: VideoDataModule, trainer: L.Trainer) -> Iterator[None]:
    """A context manager that reports which micro-batch did not fit into memory, and what to set instead.

    Raises:
        OutOfMemoryError: Memory ran out. The error carries half the micro-batch if the world size is 1 and the run
            is still in its first steps.
    """
    try:
        yield
    except RuntimeError as error:
        signs = ("DefaultCPUAllocator", "ALLOC_FAILED")  # The CPU allocator and CUDA libraries raise these.
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in signs):
            raise
        epoch, step = data.first
        done = trainer.global_step - (epoch * data.steps_per_epoch + step + data.schedule_offset)
        half = data.micro_batch_size // 2 // data.clips_per_video * data.clips_per_video
        text = (
            f"out of memory with micro_batch_size={data.micro_batch_size} (after {plural(done, 'step')}: "
            f"{reason(error)})\n"
        )
        if not half:
            advice = "it cannot be halved: lower data.frames, data.crop, model.size, or trainer.precision"
            raise OutOfMemoryError(text + advice, None) from error
        text += f"micro_batch_size={half} needs half; global_batch_size={data.global_batch_size} stays the same"
        early = done < FIRST_STEPS and trainer.world_size == 1
        raise OutOfMemoryError(text, half if early else None) from error


# What Lightning says of settings that only a run can check, and what is said instead.
SAID_INSTEAD = (
    (
        r"You requested to check (\S+) of the `(train|val|test)_dataloader` but \S+ \* (\d+) < 1.*",
        r"trainer.limit_\2_batches=\1: this is less than one of the \3 batches: raise it, or set a whole number",
    ),
    (
        r"Cannot use `(\w+)` callback with `Trainer` that has no logger.*",
        r"callbacks: \1 needs a logger: set logger=csv, or leave it out",
    ),
    (
        r"`ModelCheckpoint\(monitor='(.+?)'\)` could not find .*?metrics: \[(.*?)\].*",
        r"callbacks: ModelCheckpoint monitors \1, which this run does not log; it logs \2",
    ),
    (
        r"Early stopping conditioned on metric `(.+?)` which is not available.*?following: (.*)",
        r"callbacks: EarlyStopping monitors \1, which this run does not log; it logs \2",
    ),
)


def said_instead(text: str) -> str:
    """Returns a message of Lightning in the words of this package, if it is a known one."""
    for pattern, message in SAID_INSTEAD:
        if match := re.fullmatch(pattern, text):
            return match.expand(message).replace("`", "")
    return f"the settings of trainer or callbacks do not fit: {text}"


@contextmanager
def translate_lightning_errors() -> Iterator[None]:
    """A context manager that turns errors of Lightning about its own arguments into a `UserError`."""
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        steps = traceback.extract_tb(error.__traceback__)
        in_lightning = f"{os.sep}lightning{os.sep}" in steps[-1].filename if steps else False
        if isinstance(error, UserError) or not (in_lightning or isinstance(error, MisconfigurationException)):
            raise
        raise UserError(said_instead(" ".join(str(error).split()))) from error


@contextmanager
def translate_compile_errors() -> Iterator[None]:
    """A context manager that turns errors of torch.compile into a `UserError`."""
    logging.getLogger("torch._functorch").setLevel(logging.ERROR)  # It logs a long traceback before the error.
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"model.compile=true: torch.compile fails here ({reason(error)}); set model.compile=false to train "
            "the same model without compiling it"
        ) from error
