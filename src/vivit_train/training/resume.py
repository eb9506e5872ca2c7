"""Checkpoints from which a run goes on exactly: whole files, every few minutes, between two optimizer steps."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.models.weights.checks import check_finite
from vivit_train.models.weights.files import tensors_of
from vivit_train.training.checkpoint import KEY, Metadata, read_checkpoint
from vivit_train.utils import distributed
from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import StoppedError, UserError, reason

log = logging.getLogger(__name__)


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints bear another name until they are whole and on the disk.

    One that cannot be written, for want of space say, is a message; the one before it stays, and training goes on.

    Attributes:
        failure: the last one that could not be written, and why; "" where all could.
    """

    failure = ""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        part = f"{path}.part"
        try:
            os.makedirs(os.path.dirname(part), exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            # torch goes on to words of its own about what the file refused
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            with suppress(OSError):
                os.remove(part)
            self.failure = f"{path}: {reason(cause)}"
            log.warning(f"checkpoint {path} was not written ({reason(cause)}); training goes on")


class LastCheckpoint(Checkpoint):
    """Writes the latest checkpoint: at the end of each epoch, every `minutes` in between, and at a signal to end.

    After whole steps only: gradients that are still being accumulated are no part of a checkpoint.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end the run behind the step that it is in, a second Ctrl-C at once.

    Several processes agree after each step, in one small message between their CPUs: whether to save, whether to
    stop, and whether any has met bad videos.

    Args:
        path: of the file, which is replaced each time.
        minutes: 0 for after every step.

    Raises:
        StoppedError: after a signal, once the checkpoint is written.
    """

    def __init__(self, path: str, minutes: float) -> None:
        self.path, self.minutes = path, minutes
        self.received: signal.Signals | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        hint = "; again: at once" if number == signal.SIGINT else ""
        os.write(2, f"\n{self.received.name}: the run ends after this step{hint}\n".encode())

    def agree(self, trainer: L.Trainer, due: bool = False) -> tuple[bool, bool]:
        """Whether a checkpoint is due by the first process's clock, and whether any process was told to stop."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, VideoDataModule)
        due, stops, bad_videos = distributed.any_rank(
            due and trainer.is_global_zero, self.received is not None, bool(data.new_bad_videos)
        )
        if bad_videos:
            data.count_bad_videos()
        return due, stops

    def stop(self, trainer: L.Trainer) -> None:
        text = (
            f"stopped after step {trainer.global_step}; `ckpt_path=last` in this run's folder goes on after step "
        )
        received = self.received or signal.SIGTERM
        distributed.abort_all_ranks(StoppedError(received, f"{text}{self.saved_step}"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_s, self.step = time.monotonic(), trainer.global_step
        self.saved_step = trainer.global_step
        for number in SIGNALS:  # in place of Lightning's, which at its end puts back those that it found
            signal.signal(number, self.on_signal)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Saves what the step before has made. At its own end its line of the log is not written yet, which a run
        that is killed in between would never write."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        due, stops = self.agree(trainer, time.monotonic() - self.saved_s >= 60 * self.minutes)
        if due or stops:
            self.save(trainer)
        if stops:
            self.stop(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        _, stops = self.agree(trainer)
        if stops:  # an hour of validation is more than a scheduler waits for
            self.stop(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        _, stops = self.agree(trainer)
        self.save(trainer)
        if stops:
            self.stop(trainer)

    def save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_s, self.saved_step = time.monotonic(), trainer.global_step


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that is furthest in its training; those that cannot be read are named and passed over."""
    steps: dict[Path, int] = {}
    for path in sorted(folder.glob("*.ckpt")):
        try:
            steps[path] = read_checkpoint(path, mmap=True)["global_step"]
        except (UserError, KeyError) as error:
            log.warning(f"checkpoint {path} is passed over: {error}")
    # "last" rather than "best" where they are equally far: it knows that the epoch is over
    return max(steps, key=lambda path: (steps[path], path.stem == "last"), default=None)


def check_resumable(path: Path) -> tuple[int, Any]:
    """Checks a checkpoint before Lightning reads it; returns its step, and the state of its data.

    Raises:
        UserError: it cannot be read, has no state of a training run, or its weights are not finite.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    Metadata.from_stored(checkpoint[KEY], path)
    state = checkpoint["state_dict"]
    check_finite(tensors_of({name.removeprefix("net."): value for name, value in state.items()}, path), path)
    for key in ("global_step", "epoch"):
        if not conforms(checkpoint.get(key), int) or not 0 <= checkpoint[key] < 2**40:
            raise UserError(
                f"{path} cannot be resumed: it has no {key}; init.path={path} starts anew from its weights"
            )
    return int(checkpoint["global_step"]), checkpoint.get(VideoDataModule.__qualname__)


@contextmanager
def translate_resume_errors(trainer: L.Trainer, path: str | None) -> Iterator[None]:
    """Says that a checkpoint's state of the loops, the optimizer or the callbacks is not this run's.

    Raises:
        UserError: anything failed between the reading of the checkpoint and the first step.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if path is None or trainer.fit_loop.epoch_loop.batch_progress.total.ready or trainer.training:
            raise
        raise UserError(
            f"{path} cannot be resumed ({reason(error)}): it is another version's, another model's, or damaged; "
            f"init.path={path} starts anew from its weights"
        ) from error


def keep_paths_inside(callbacks: dict[str, Any], folder: Path) -> None:
    """Makes the paths in the state of a checkpoint's `ModelCheckpoint`s those of the run's own folder.

    Lightning deletes and loads by these paths. A checkpoint from elsewhere may name any file or URL, and a run's
    folder may have been moved. Where the folder has no such best checkpoint, the search for one starts anew.
    """

    def inside(path: Any) -> str:
        return str(folder / Path(path).name) if isinstance(path, str) and path else ""

    for key in [key for key in callbacks if str(key).startswith("ModelCheckpoint")]:
        state = dict(callbacks[key])
        best = {inside(path): score for path, score in dict(state.get("best_k_models", {})).items()}
        paths = {
            name: inside(state.get(name)) for name in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        if all(Path(path).is_file() for path in (*best, paths["best_model_path"])):
            callbacks[key] = state | paths | {"dirpath": str(folder), "best_k_models": best}
        else:
            callbacks[key] = {"dirpath": None, "best_model_path": ""}


def to_fqn_order(state: dict[str, Any], optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> None:
    """Numbers the parameters of an optimizer's state as they come in the module: trainer=fsdp reads nothing else.

    torch numbers them as they come in the optimizer's groups; it reads any numbers, by their places in the groups.
    """
    places = {id(parameter): i for i, parameter in enumerate(module.parameters())}
    theirs = [places[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state["state"] = {theirs[i]: value for i, value in state["state"].items()}
    for group in state["param_groups"]:
        group["params"] = [theirs[i] for i in group["params"]]


def align_loop_progress(
    epoch_loop: dict[str, Any], progress: dict[str, Any], accumulated: int, accumulation: int
) -> None:
    """Turns Lightning's state of a checkpoint into what it expects of one that is written behind a whole step.

    A checkpoint that `LastCheckpoint` writes has begun the next micro-batch. One of another number of processes
    counts `accumulated` micro-batches to a step, where there are now `accumulation`.
    """
    ahead = progress["current"]["ready"] - progress["current"]["processed"]
    epoch_loop["_batches_that_stepped"] -= ahead
    for counts in (progress["total"], progress["current"]):
        over = not ahead and counts["completed"] == counts["processed"]  # the epoch is
        done = counts["processed"] // accumulated * accumulation
        counts.update(ready=done, started=done, processed=done, completed=done if over else done - 1)
    if ahead:  # the epoch's last micro-batch may be the one that has begun; it is still to come
        progress["is_last_batch"] = False


def shift_loop_progress(progress: dict[str, Any], before: int, now: int, accumulation: int) -> None:
    """Moves Lightning's progress in an epoch of `before` micro-batches into one of `now`: behind its end where it
    was, else at the same place, with one step at least still to come."""
    current = progress["current"]
    over = current["completed"] >= before
    behind = current["ready"] - current["completed"]
    done = now if over else min(current["ready"], now - accumulation)
    current.update(ready=done, started=done, processed=done, completed=done - behind)
