"""Variants of Lightning's loggers that continue when a run resumes and that never ask for an account.

A run that was killed may have logged steps after its last checkpoint, and logs them again when it resumes.
`first_step` is the step of the checkpoint that the run resumes from, or None for a new run.
"""

import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vivit_train.utils.files import read_table, read_text

log = logging.getLogger(__name__)


class MetricsFile(CSVLogger):
    """A logger that writes metrics.csv in `save_dir` and keeps earlier rows when a run resumes."""

    def __init__(self, save_dir: str, first_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)
        if first_step is not None:
            self.keep(Path(save_dir) / "metrics.csv", first_step)

    @rank_zero_only
    def keep(self, file: Path, first_step: int) -> None:
        """Keeps the rows of `file` before `first_step`."""
        # The file is read here because the first use of `experiment` deletes it.
        header, *rows = (read_table(file) if file.exists() else []) or [[]]
        for cells in rows:
            row = dict(zip(header, cells, strict=False))
            if re.fullmatch("[0-9]{1,15}", row.get("step", "")) and int(row["step"]) < first_step:
                self.experiment.metrics.append({name: value for name, value in row.items() if value})


def tensorboard_logger(save_dir: str, first_step: int | None = None) -> TensorBoardLogger:
    """Returns Lightning's TensorBoard logger; it hides what an earlier process logged from `first_step` on."""
    return TensorBoardLogger(save_dir, name="tensorboard", version="", purge_step=first_step)


class WandbRun(WandbLogger):
    """A logger that keeps a single wandb run across resumes and never sends the same metrics twice.

    `save_dir`/wandb/sent.txt contains the run id, followed by one line for each set of metrics that was sent.
    """

    def __init__(self, save_dir: str, first_step: int | None, **init: Any) -> None:
        self.file = Path(save_dir) / "wandb/sent.txt"
        known = read_text(self.file).split() if first_step is not None and self.file.exists() else []
        self.sent = set(known[1:])
        run_id = known[0] if known else secrets.token_hex(4)
        super().__init__(save_dir=save_dir, id=run_id, resume="allow", **init)
        self.write("w", [run_id, *sorted(self.sent)])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        what = f"{step}:{max(metrics)}"  # One step has several calls with different names.
        if what not in self.sent:
            super().log_metrics(metrics, step)
            self.write("a", [what])

    @rank_zero_only
    def write(self, mode: Literal["w", "a"], lines: Sequence[str]) -> None:
        """Writes lines to sent.txt."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open(mode, encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def wandb_logger(project: str, save_dir: str, first_step: int | None = None) -> WandbRun:
    """Returns a wandb logger: online if wandb finds credentials, else, or with WANDB_MODE=offline, offline."""
    import wandb  # This import takes seconds.

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    if mode == "offline":
        log.info(f"wandb: offline; `wandb sync {save_dir}/wandb/offline-*` uploads this run later")
    return WandbRun(save_dir, first_step, project=project, mode=mode)


def log_image(logger: Logger, name: str, file: Path, step: int) -> None:
    """Sends a picture to TensorBoard or wandb; other loggers take none. Only rank 0 calls this."""
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [str(file)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        logger.experiment.add_image(name, imread(file)[:, :, :3], step, dataformats="HWC")
