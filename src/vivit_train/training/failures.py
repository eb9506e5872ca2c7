"""Errors of torch and Lightning in our words: what did not fit, what could not be written or compiled."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.utils.errors import OutOfMemoryError, UserError, reason


def missing_checkpoint(trainer: L.Trainer, best: str) -> str:
    """What a run says at its end, where its best checkpoint is not there to be scored."""
    why = getattr(trainer.strategy.checkpoint_io, "failure", "") or f"{best} is gone"
    folder = Path(best).parent
    left = ", ".join(sorted(path.name for path in folder.glob("*.ckpt"))) or "no checkpoint"
    return (
        f"training is done, but its best checkpoint was not kept and cannot be scored ({why}). {folder} holds "
        f"{left}; metrics.csv has the scores of each epoch. Free some space: resume=auto in this folder goes on "
        "from there"
    )


FIRST_STEPS = 10  # of an attempt, that are not missed where it begins anew


@contextmanager
def translate_out_of_memory(data: VideoDataModule, trainer: L.Trainer) -> Iterator[None]:
    """Says which micro-batch did not fit into memory, and what to set.

    Raises:
        OutOfMemoryError: with half the micro-batch where one process has taken its first steps.
    """
    try:
        yield
    except RuntimeError as error:
        signs = ("DefaultCPUAllocator", "ALLOC_FAILED")  # the CPU's, and those of CUDA's libraries
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in signs):
            raise
        epoch, step = data.first
        done = trainer.global_step - (epoch * data.steps_per_epoch + step + data.schedule_offset)
        half = data.micro_batch // 2 // data.clips_per_video * data.clips_per_video
        text = (
            f"memory does not suffice for data.micro_batch={data.micro_batch} clips at once (after {done} steps: "
            f"{reason(error)})\n"
        )
        if not half:
            advice = "it cannot be halved: lower data.frames, data.crop or model.size, or trainer.precision"
            raise OutOfMemoryError(text + advice, None) from error
        text += f"data.micro_batch={half} takes half; recipe.global_batch={data.global_batch} stays as it is"
        early = done < FIRST_STEPS and trainer.world_size == 1
        raise OutOfMemoryError(text, half if early else None) from error


@contextmanager
def translate_compile_errors() -> Iterator[None]:
    logging.getLogger("torch._functorch").setLevel(logging.ERROR)  # a page of traceback, and the error after it
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"model.compile=true: torch.compile fails here ({reason(error)}); model.compile=false trains the same "
            "model uncompiled"
        ) from error
