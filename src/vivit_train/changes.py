"""Where a run resumes, and what it changes from its checkpoint on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.digest import check_unchanged
from vivit_train.keys import SPEED
from vivit_train.training.checkpoint import Metadata
from vivit_train.training.resume import check_resumable, newest_checkpoint
from vivit_train.training.targets import with_short_names
from vivit_train.utils.distributed import leaves
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_text
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
RECORD = "recipe_differences.txt"
MARK = "\nchanged at step "  # the start of each entry about a resumed run
# These keys affect where and how a run is computed, or what it writes, but not what it learns.
FREE = (
    *("callbacks.", "logger.", "eval.", "micro_batch_size", "auto_micro_batch_size", "trainer.accelerator"),
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.profiler", "trainer.enable_"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.use_distributed_sampler"),
    *("data.root", "data.train", "data.val", "data.test", "model._target_"),
    *SPEED,
)
# These belong to the command that resumes, or follow from other keys.
LEFT_OUT = ("run_dir", "ckpt_path", "resume", "overwrite", "recipe.", "trainer.accumulate_grad_batches")
# The classes of these nodes take arguments that only some configurations state.
OPEN = ("optimizer.", "scheduler.", "loss.", "trainer.", "callbacks.", "logger.")
# The weights, or the state of the optimizer, belong to these.
FIXED = (
    *("model.", "data.name", "data._target_", "data.frames", "data.crop", "data.reader.multi_label"),
    *("optimizer._target_", "optimizer.amsgrad", "init.", "ema_decay", "layer_decay", "task."),
)
CAN_CHANGE = ("model.drop_path",)


def changed_settings(stored: Mapping[str, Any], now: Mapping[str, Any], ckpt_path: str) -> list[str]:
    """Returns a line for each setting that a resumed run changes from its checkpoint on.

    Settings that only one of the two configurations has are left out if they are from another version.

    Args:
        stored: The configuration in the checkpoint.
        now: The configuration of this run.
        ckpt_path: The checkpoint, for the message.

    Raises:
        UserError: A setting differs that a run cannot change. The message lists all of them.
    """
    before, after = dict(leaves(stored)), dict(leaves(now))
    folder = str(before.get("run_dir"))

    def moved(key: str) -> Any:
        """Returns the value in the checkpoint, with the folder of this run in place of the earlier one."""
        value = before.get(key)
        if not isinstance(value, str) or not value.startswith(folder):
            return value
        return str(after.get("run_dir")) + value.removeprefix(folder)

    # A plain value on one side can be a group of keys on the other.
    before |= {key: "a group of keys" for key in after if is_group(key, before)}
    after |= {key: "a group of keys" for key in before if is_group(key, after)}
    both = [key for key in {**before, **after} if (key in before and key in after) or key.startswith(OPEN)]
    changed = [key for key in both if moved(key) != after.get(key) and not key.startswith(LEFT_OUT)]
    fixed = [key for key in changed if (key == "train" or key.startswith(FIXED)) and key not in CAN_CHANGE]
    if fixed:
        lines = "\n".join(
            f"  - {key}: {before.get(key)} in the checkpoint, {after.get(key)} here" for key in fixed
        )
        raise UserError(
            f"{plural(len(fixed), 'setting')} cannot change when a run resumes from {ckpt_path}:\n{lines}\n"
            "Set what the checkpoint has, or start a new run from its weights in another folder: "
            f"init.path={ckpt_path}"
        )
    ordered = sorted(changed, key=lambda key: key.startswith(FREE))
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        + (" (changes nothing in what is learned)" if key.startswith(FREE) else "")
        for key in ordered
    ]


def is_group(key: str, found: Mapping[str, Any]) -> bool:
    """Returns whether there are leaves below a dotted key."""
    return any(name.startswith(f"{key}.") for name in found)


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run resumes from.

    Attributes:
        ckpt_path: The path of the checkpoint.
        step: Its optimizer step.
        metadata: Its metadata.
        is_complete: Whether training was complete and has been evaluated.
        changes: What the run changes from the checkpoint on, as text; "" if it changes nothing.
    """

    ckpt_path: str
    step: int
    metadata: Metadata
    is_complete: bool
    changes: str


def resumed_from(cfg: DictConfig, data: VideoDataModule, run_dir: Path) -> Resumed | None:
    """Returns the checkpoint that the run resumes from, or None for a new run.

    Raises:
        UserError: The run cannot resume from the checkpoint with these settings and data.
    """
    ckpt_path = checkpoint_to_resume(cfg)
    if ckpt_path is None:
        return None
    step, state, metadata = check_resumable(Path(ckpt_path))
    log.info(f"Resuming from {ckpt_path} (step {step})")
    now = with_short_names(OmegaConf.to_container(cfg))  # as in the checkpoint
    changes = ""
    if changed := changed_settings(metadata.config, now, ckpt_path):
        changes = "\n  ".join([f"changed at step {step}, when the run was resumed:", *changed])
        log.info(changes)
    if notice := check_unchanged(data, state, ckpt_path, run_dir / "data_changes.txt", step):
        log.info(notice)
    over = state is not None and (state["epoch"] >= cfg.trainer.max_epochs or 0 < cfg.trainer.max_steps <= step)
    evaluated = (run_dir / "metrics.json").is_file()
    return Resumed(ckpt_path, step, metadata, is_complete=over and evaluated, changes=changes)


@rank_zero_only
def write_record(run_dir: Path, differences: str, resumed: Resumed | None) -> None:
    """Writes recipe_differences.txt: the differences, and what this and earlier resumed runs have changed."""
    file = run_dir / RECORD
    text = read_text(file, errors="replace") if file.exists() else ""
    _, mark, earlier = text.partition(MARK)
    changes = f"\n{resumed.changes}\n" if resumed and resumed.changes else ""
    file.write_text(f"{differences}\n{mark}{earlier}{changes}", encoding="utf-8")


def checkpoint_to_resume(cfg: DictConfig) -> str | None:
    """Returns the checkpoint that `ckpt_path` or `resume` refers to, or None to start a new run.

    Raises:
        UserError: ckpt_path=last is set, but there is no checkpoint.
    """
    if cfg.ckpt_path != "last" and cfg.resume != "auto":
        return cfg.ckpt_path
    folder = Path(cfg.run_dir) / "checkpoints"
    newest = newest_checkpoint(folder)
    if newest is None and cfg.resume != "auto":
        raise UserError(
            f"ckpt_path=last: no checkpoint in {folder}; set hydra.run.dir=DIR to the folder of the run to resume"
        )
    if newest is None:
        log.info(f"no checkpoint in {folder} yet: starting a new run")
    return str(newest) if newest else None
