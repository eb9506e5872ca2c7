"""Checkpoints for exact resumption: complete files, written every few minutes between two optimizer steps."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

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
    """A checkpoint plugin that writes to a temporary name and renames the file once it is complete and on disk.

    If a checkpoint cannot be written, for example because the disk is full, this logs a warning. The previous
    checkpoint stays, and training continues.

    Attributes:
        failure: The last checkpoint that could not be written, and the reason; "" if there is none.
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
            # torch replaces the OSError of the file with an error that does not give the reason.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            with suppress(OSError):
                os.remove(part)
            self.failure = f"{path}: {reason(cause)}"
            log.warning(f"checkpoint {path} was not written ({reason(cause)}); training continues")


class LastCheckpoint(Checkpoint):
    """A callback that writes the latest checkpoint: after each epoch, every few minutes, and on a stop signal.

    It saves only between optimizer steps, because a checkpoint does not contain accumulated gradients.

    SIGTERM, SIGUSR1, SIGUSR2, and Ctrl-C stop the run after the current step; a second Ctrl-C stops it
    immediately.

    After each step, the ranks agree in one small message between CPUs whether to save and whether to stop.

    Args:
        path: The file, which is replaced each time.
        minutes: The time between two checkpoints within an epoch; 0 saves after every step.

    Raises:
        StoppedError: A signal stopped the run, and the checkpoint is written.
    """

    def __init__(self, path: str, minutes: float) -> None:
        self.path, self.minutes = path, minutes
        self.received: signal.Signals | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Records a signal; a second Ctrl-C raises KeyboardInterrupt."""
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        ctrl_c = number == signal.SIGINT
        name, hint = ("Ctrl-C", "; press again to stop now") if ctrl_c else (self.received.name, "")
        os.write(2, f"\n{name}: stopping after this step{hint}\n".encode())

    def agree(self, trainer: L.Trainer, due: bool = False) -> tuple[bool, bool]:
        """Returns whether a checkpoint is due by rank 0's clock, and whether any rank was told to stop."""
        due, stops = distributed.any_rank(due and trainer.is_global_zero, self.received is not None)
        return due, stops

    def stop(self, trainer: L.Trainer) -> None:
        """Ends all ranks after a signal."""
        text = f"stopped after step {trainer.global_step}; `ckpt_path=last` in this folder resumes after step "
        received = self.received or signal.SIGTERM
        distributed.abort_all_ranks(StoppedError(received, f"{text}{self.saved_step}"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_s, self.step = time.monotonic(), trainer.global_step
        self.saved_step = trainer.global_step
        # These handlers replace Lightning's, and Lightning restores the original ones when it ends.
        for number in SIGNALS:
            signal.signal(number, self.on_signal)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Saves the result of the previous step.

        At the end of that step, its log line is not yet written, and a run that is killed in between would never
        write it.
        """
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
        if stops:  # A scheduler does not wait for the end of a long validation.
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
    """Returns the checkpoint with the most steps; unreadable checkpoints are skipped with a warning."""
    steps: dict[Path, int] = {}
    for path in sorted(folder.glob("*.ckpt")):
        try:
            steps[path] = read_checkpoint(path, mmap=True)["global_step"]
        except (UserError, KeyError) as error:
            log.warning(f"skipping checkpoint {path}: {error}")
    # If steps are equal, prefer "last" to "best", because it records that the epoch is complete.
    return max(steps, key=lambda path: (steps[path], path.stem == "last"), default=None)


def check_resumable(path: Path) -> tuple[int, Any, Metadata]:
    """Checks a checkpoint before Lightning reads it; returns its step, the state of its data, and its metadata.

    Raises:
        UserError: The file cannot be read, has no state of a training run, or has non-finite weights.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    metadata = Metadata.from_stored(checkpoint[KEY], path)
    state = checkpoint["state_dict"]
    check_finite(tensors_of({name.removeprefix("net."): value for name, value in state.items()}, path), path)
    data = checkpoint.get(VideoDataModule.__qualname__)
    if not conforms(data, dict[str, Any] | None) or has_negative(checkpoint.get("loops")):
        raise UserError(
            f"{path} cannot be resumed: its progress is damaged; "
            f"init.path={path} starts a new run from its weights"
        )
    for key in ("global_step", "epoch"):
        if not conforms(checkpoint.get(key), int) or not 0 <= checkpoint[key] < 2**40:
            raise UserError(
                f"{path} cannot be resumed: it has no {key}; init.path={path} starts a new run from its weights"
            )
    return int(checkpoint["global_step"]), data, metadata


def has_negative(node: Any) -> bool:
    """Returns whether a count in the saved state of Lightning's loops is negative."""
    if isinstance(node, Mapping):
        return any(map(has_negative, node.values()))
    return isinstance(node, int) and node < 0


def check_schedules(states: Sequence[Mapping[str, Any]]) -> None:
    """Checks the saved states of schedules, which torch copies into the attributes of the schedules.

    Raises:
        ValueError: A state would replace a method, or has another number of parameter groups.
    """
    for state in states:
        if odd := [key for key in state if key == "optimizer" or callable(getattr(LRScheduler, key, None))]:
            raise ValueError(f"the state of a schedule replaces {odd[0]!a}")
        if len(state.get("lr_lambdas", state["base_lrs"])) != len(state["base_lrs"]):
            raise ValueError("the state of a schedule has another number of parameter groups")


def check_optimizer(optimizer: torch.optim.Optimizer, path: object) -> None:
    """Checks the state that an optimizer has loaded, before its first step.

    Fused kernels do not compare the moments with their parameter: they would read and write memory that is not
    theirs. All options but the learning rate and the weight decay are those of this run.

    Raises:
        UserError: The state does not fit the parameters, or an option has the wrong type.
    """
    refusal = f"{path} cannot be resumed: the optimizer's"
    advice = f"; init.path={path} starts a new run from its weights"
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            if default is None or isinstance(default, bool):
                group[name] = default
            elif isinstance(default, int | float) and not isinstance(group.get(name), int | float | Tensor):
                raise UserError(f"{refusal} {name} is no number{advice}")
            elif name not in ("lr", "weight_decay"):  # The schedule sets one, and the other differs by group.
                group[name] = default
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not fits(value, parameter, exactly=bool(group.get("fused")) and name != "step"):
                    shape = [*parameter.shape]
                    raise UserError(f"{refusal} {name!a} does not fit a weight of shape {shape}{advice}")


def fits(value: Any, parameter: Tensor, *, exactly: bool) -> bool:
    """Returns whether a value in an optimizer's state is a number, or can be that of a parameter.

    Args:
        value: The value. A number that is a tensor has one element.
        parameter: The parameter. Adafactor has means of its rows and columns, which are broadcast.
        exactly: Whether shape and strides must be those of the parameter.
    """
    if not isinstance(value, Tensor):
        return value is None or isinstance(value, int | float)
    if exactly:
        return value.shape == parameter.shape and value.stride() == parameter.stride()
    broadcast = value.ndim == parameter.ndim and all(
        a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True)
    )
    return value.numel() == 1 or broadcast


@contextmanager
def translate_resume_errors(trainer: L.Trainer, path: str | None) -> Iterator[None]:
    """A context manager that reports that the loop, optimizer, or callback state of a checkpoint does not fit.

    Raises:
        UserError: An error occurred between reading the checkpoint and the first step.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if path is None or trainer.fit_loop.epoch_loop.batch_progress.total.ready or trainer.training:
            raise
        raise UserError(
            f"{path} cannot be resumed ({reason(error)}): it is from another version or model, or damaged; "
            f"init.path={path} starts a new run from its weights"
        ) from error


def keep_paths_inside(callbacks: dict[str, Any], folder: Path) -> None:
    """Rewrites the paths in the saved state of `ModelCheckpoint` callbacks to the run's own folder.

    Lightning deletes and loads files by these paths. A checkpoint from elsewhere can name any file or URL, and a
    run folder may have been moved. If the folder does not contain the best checkpoints, the state is reset.
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
    """Renumbers the parameters of an optimizer state dict in the order of the module, as trainer=fsdp requires.

    torch numbers them in the order of the optimizer's parameter groups, but accepts any numbering.
    """
    places = {id(parameter): i for i, parameter in enumerate(module.parameters())}
    theirs = [places[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state["state"] = {theirs[i]: value for i, value in state["state"].items()}
    for group in state["param_groups"]:
        group["params"] = [theirs[i] for i in group["params"]]


def align_loop_progress(
    epoch_loop: dict[str, Any], progress: dict[str, Any], accumulated: int, accumulation: int
) -> None:
    """Changes Lightning's saved loop state so that it ends at a complete optimizer step.

    A checkpoint from `LastCheckpoint` has already started the next micro-batch. A checkpoint from another world
    size has `accumulated` micro-batches per step instead of `accumulation`.
    """
    ahead = progress["current"]["ready"] - progress["current"]["processed"]
    epoch_loop["_batches_that_stepped"] -= ahead
    for counts in (progress["total"], progress["current"]):
        over = not ahead and counts["completed"] == counts["processed"]  # The epoch is over.
        done = counts["processed"] // accumulated * accumulation
        counts.update(ready=done, started=done, processed=done, completed=done if over else done - 1)
    if ahead:  # The started micro-batch, maybe the last of the epoch, is not done.
        progress["is_last_batch"] = False


def shift_loop_progress(progress: dict[str, Any], before: int, now: int, accumulation: int) -> None:
    """Moves Lightning's progress from an epoch of `before` micro-batches to an epoch of `now` micro-batches.

    If the epoch was complete, it stays complete. Otherwise the position stays the same, but at least one step
    remains.
    """
    current = progress["current"]
    over = current["completed"] >= before
    behind = current["ready"] - current["completed"]
    done = now if over else min(current["ready"], now - accumulation)
    current.update(ready=done, started=done, processed=done, completed=done - behind)


def use_settings(group: dict[str, Any], settings: Mapping[str, Any], decays: bool) -> None:
    """Replaces the hyperparameters of a saved parameter group with those of the run that resumes.

    The schedule sets the current learning rate.

    Args:
        group: A parameter group of the optimizer's state.
        settings: The arguments of the optimizer. Those that are not set keep the saved values.
        decays: Whether the parameters of this group decay; see `optim.parameter_groups`.
    """
    for name, value in settings.items():
        if name in group and (decays or name != "weight_decay"):
            group[name] = tuple(value) if isinstance(value, list) else value
    if "lr" in settings and "initial_lr" in group:
        group["initial_lr"] = settings["lr"] * group.get("lr_scale", 1.0)
    if "fused" in group:
        group["fused"] = settings.get("fused")
