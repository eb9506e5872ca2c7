"""Weights & Biases without an account: offline, instead of an error or a question nobody answers."""

import os

import wandb
from lightning.pytorch.loggers import WandbLogger


def wandb_logger(project: str, save_dir: str) -> WandbLogger:
    """Lightning's logger: online where wandb finds an API key (or WANDB_MODE says so), else offline."""
    offline = os.environ.get("WANDB_MODE", "" if wandb.api.api_key else "offline") == "offline"
    if offline:
        print(f"wandb: offline; `wandb sync {save_dir}/wandb/offline-*` sends this run later")
    return WandbLogger(project=project, save_dir=save_dir, offline=offline)
