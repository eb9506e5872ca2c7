"""Communication between the ranks of a job. With a world size of 1, nothing is sent and nothing waits."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from vivit_train.utils.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = timedelta(seconds=10)  # The other ranks wait this long for rank 0 to report the error.
SHOWN = 10  # A message lists this many differences between configurations and only counts the rest.


def count() -> int:
    """Returns the world size."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the rank of this process."""
    return dist.get_rank() if count() > 1 else 0


@cache
def group() -> Any:
    """Returns a gloo process group, so that collectives run between CPUs.

    They do not wait for a GPU, and they fail immediately if a rank is gone. All ranks must call this together.
    """
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def any_rank(*flags: bool) -> list[bool]:
    """Returns, for each flag, whether it is set on any rank. All ranks must call this together."""
    if count() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.uint8)
    with exit_on_lost_rank():
        dist.all_reduce(raised, dist.ReduceOp.MAX, group())
    return [bool(flag) for flag in raised.tolist()]


def gather(value: T) -> list[T]:
    """Returns the value of every rank, ordered by rank. All ranks must call this together."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with exit_on_lost_rank():
        dist.all_gather_object(values, value, group())
    return values


@contextmanager
def exit_on_lost_rank() -> Iterator[None]:
    """A context manager that ends this process immediately if another rank is gone and this one uses a GPU.

    Otherwise the GPU would wait for the lost rank for half an hour, and so would any cleanup code.
    """
    try:
        yield
    except RuntimeError as error:
        if dist.get_backend() == "gloo" or not is_loss(error):
            raise
        log.error(f"error: {loss()}")
        os._exit(1)


def is_loss(error: RuntimeError) -> bool:
    """Returns whether an error means that another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def loss() -> str:
    """Returns the message for a job that has lost a rank."""
    return (
        f"process {rank()} of {count()} has lost another one of the job: that process exited or hangs, or the "
        "network failed. Its last log lines say why; resume=auto resumes from the newest checkpoint"
    )


@contextmanager
def translate_rank_errors() -> Iterator[None]:
    """A context manager that raises `UserError` if another process of the job is gone."""
    try:
        yield
    except RuntimeError as error:
        if count() > 1 and is_loss(error):
            raise UserError(loss()) from error
        raise


def abort_all_ranks(error: UserError) -> NoReturn:
    """Ends all ranks after all of them have found the same error. All ranks must call this together.

    Raises:
        UserError: On rank 0, which reports `error`.
        SystemExit: On the other ranks, after rank 0 is gone. A launcher kills the remaining ranks as soon as one
            exits, so rank 0 must report first.
    """
    if rank() == 0:
        raise error
    with suppress(RuntimeError):
        dist.monitored_barrier(group(), PATIENCE)
    sys.exit(getattr(error, "code", 1))


class CheckRankConsistency(Callback):
    """A callback that ends a job whose ranks have different configurations or data before they deadlock.

    Run folders may differ, because their names can contain the start time and only rank 0 writes.

    Args:
        config: The complete configuration of the job as plain data.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.facts = dict(leaves({**config, "run_dir": ""}))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if count() == 1:
            return
        splits = trainer.datamodule.splits  # type: ignore[attr-defined]
        for name in ("train", "val", "test"):
            if (manifest := getattr(splits, name)) is not None:
                ids = "\n".join(manifest.ids.tolist())
                digest = hashlib.sha256(ids.encode(errors="surrogateescape")).hexdigest()[:8]
                self.facts[f"the {name} clips"] = f"{len(manifest)} (checksum {digest})"
        if lines := differences(gather(self.facts)):
            more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
            text = "the processes of this job disagree; start all of them with the same command and data:"
            abort_all_ranks(UserError("\n".join([text, *lines[:SHOWN], *more])))


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and the value of every leaf of a configuration."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def differences(facts: list[dict[str, Any]]) -> list[str]:
    """Returns one line for each fact that is not the same on all ranks."""
    lines = []
    for key in dict.fromkeys(key for one in facts for key in one):
        values = [one.get(key, "nothing") for one in facts]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            lines.append(f"  {key}: {values[0]} in process 0, {values[other]} in process {other}")
    return lines
