"""What the processes of a job tell each other. Alone, a process sends nothing and waits for nobody."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from vivit_train.utils.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE = timedelta(seconds=10)  # with the first process, which says what ends all of them
SHOWN = 10  # differences between configurations that a message names before it only counts


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


@cache
def group() -> Any:
    """Between their CPUs, so that no GPU is waited for, and it shows at once where a process has gone.

    All processes ask for it together."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def any_rank(*flags: bool) -> list[bool]:
    """Of each flag, whether any process has raised it. All processes ask together."""
    if count() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.uint8)
    with exit_on_lost_rank():
        dist.all_reduce(raised, dist.ReduceOp.MAX, group())
    return [bool(flag) for flag in raised.tolist()]


def gather(value: T) -> list[T]:
    """Each process's value, by rank. All processes ask together."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with exit_on_lost_rank():
        dist.all_gather_object(values, value, group())
    return values


@contextmanager
def exit_on_lost_rank() -> Iterator[None]:
    """Ends this process at once where another has gone and a GPU waits for it: for half an hour, and whoever
    cleans up waits for the GPU."""
    try:
        yield
    except RuntimeError as error:
        if dist.get_backend() == "gloo" or not is_loss(error):
            raise
        log.error(f"error: {loss()}")
        os._exit(1)


def is_loss(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def loss() -> str:
    return (
        f"process {rank()} of {count()} has lost another one of the job: that one ended, or hangs, or the network "
        "does. Its own last lines say why; resume=auto goes on from the newest checkpoint"
    )


@contextmanager
def translate_rank_errors() -> Iterator[None]:
    """Says so where another process of the job is gone."""
    try:
        yield
    except RuntimeError as error:
        if count() > 1 and is_loss(error):
            raise UserError(loss()) from error
        raise


def abort_all_ranks(error: UserError) -> NoReturn:
    """Ends all processes, which have all found the same. All of them call it.

    Raises:
        UserError: `error` in the first process, which so says it.
        SystemExit: in the others, once the first has gone: a launcher kills the rest where one process ends.
    """
    if rank() == 0:
        raise error
    with suppress(RuntimeError):
        dist.monitored_barrier(group(), PATIENCE)
    sys.exit(getattr(error, "code", 1))


class CheckRankConsistency(Callback):
    """Ends a job whose processes have different configurations or data, before they wait for each other for ever.

    Folders that hold the time of the start may differ: the first process alone writes.

    Args:
        cfg: the job's whole configuration.
    """

    def __init__(self, cfg: DictConfig) -> None:
        cfg = deepcopy(cfg)
        cfg.run_dir = ""
        trains = "recipe" in cfg  # in eval.py's configuration the data may refer to a recipe that is not there
        self.facts = dict(leaves(OmegaConf.to_container(cfg, resolve=trains)))

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
            text = "the processes of this job do not agree; start all of them with the same command and data:"
            abort_all_ranks(UserError("\n".join([text, *lines[:SHOWN], *more])))


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration as pairs of a dotted key and its value."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def differences(facts: list[dict[str, Any]]) -> list[str]:
    """A line for each fact that is not the same in all processes."""
    lines = []
    for key in dict.fromkeys(key for one in facts for key in one):
        values = [one.get(key, "nothing") for one in facts]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            lines.append(f"  {key}: {values[0]} in process 0, {values[other]} in process {other}")
    return lines
