"""Weights & Biases without an account: offline, instead of an error or a question nobody answers."""

import os

import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(project: str, save_dir: str) -> WandbLogger:
    """Lightning's logger: online where wandb finds credentials, else, or with WANDB_MODE=offline, offline."""
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    if mode == "offline":
        print(f"wandb: offline; `wandb sync {save_dir}/wandb/offline-*` sends this run later")
    return WandbLogger(project=project, save_dir=save_dir, mode=mode)
