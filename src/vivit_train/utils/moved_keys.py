"""The names that configuration keys had before, for messages that name the new ones."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

AUGMENTATION = ("scale_jitter", "flip", "color_jitter", "strong_color", "randaugment", "random_erasing")
MOVED_KEYS = {
    "recipe.init": "init.name",
    "recipe.optimizer": "optimizer",
    "recipe.weight_decay": "optimizer.weight_decay",
    "recipe.epochs": "trainer.max_epochs",
    "recipe.global_batch": "global_batch_size",
    "recipe.warmup_epochs": "scheduler.warmup_epochs",
    "recipe.scale_lr": "scale_lr",
    "recipe.clip_grad_norm": "trainer.gradient_clip_val",
    "recipe.label_smoothing": "loss.label_smoothing",
    "recipe.mixup": "mixup",
    "recipe.cutmix": "cutmix",
    "recipe.drop_path": "model.drop_path",
    "recipe.ema": "ema_decay",
    **{f"recipe.{name}": f"data.{name}" for name in AUGMENTATION},
    "task.optimizer": "optimizer",
    "task.weight_decay": "optimizer.weight_decay",
    "task.label_smoothing": "loss.label_smoothing",
    "task.mixup": "mixup",
    "task.cutmix": "cutmix",
    "data.global_batch": "global_batch_size",
    "data.micro_batch": "micro_batch_size",
    "data.short": "data.padding",
    "data.squash": "data.resize_mode",
    "trainer.auto_micro_batch": "auto_micro_batch_size",
}
# What people type who know other programs.
COMMON_WORDS = {
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "batch_size": "global_batch_size",
    "batch": "global_batch_size",
    "train.batch_size": "global_batch_size",
    "data.batch_size": "global_batch_size",
    "accumulate_grad_batches": "micro_batch_size",
    "gpus": "trainer.devices",
    "devices": "trainer.devices",
    "trainer.gpus": "trainer.devices",
    "precision": "trainer.precision",
    "amp": "trainer.precision",
    "model.name": "model=NAME, a group",
    "data.workers": "data.num_workers",
    "num_workers": "data.num_workers",
    "workers": "data.num_workers",
    "frames": "data.frames",
    "num_frames": "data.frames",
    "image_size": "data.crop",
    "img_size": "data.crop",
    "dropout": "model.drop_path",
    "drop_path": "model.drop_path",
    "label_smoothing": "loss.label_smoothing",
    "warmup_epochs": "scheduler.warmup_epochs",
    "pretrained": "init=imagenet, a group",
    "resume_from": "resume=auto",
    "checkpoint": "ckpt_path",
    "output_dir": "hydra.run.dir",
    "ema": "ema_decay",
    "early_stopping": "patience",
    "class_weights": "loss.class_weights",
    "class_weight": "loss.class_weights",
}


def moved_hint(text: str) -> str:
    """Returns "; it is now KEY" for each old key that a text names, or "" if it names none."""
    found = []
    for old, new in MOVED_KEYS.items():
        for rest in re.findall(rf"(?<![\w.]){re.escape(old)}((?:\.\w+)*)(?![\w.])", text):
            found.append(f"; {old}{rest} is now {new}{rest}")
    return "".join(dict.fromkeys(found))


def unknown(key: str, known: Sequence[str], target: str = "") -> str:
    """Returns the message about a key that nothing reads, with its new name or the most similar key.

    Args:
        key: The dotted key.
        known: The keys that there are.
        target: The function or class that lacks the argument, if that is the reason.
    """
    if hint := moved_hint(key):
        return f"{key}: there is no such key{hint}"
    word = key if key in COMMON_WORDS else key.rpartition(".")[2]
    if word in COMMON_WORDS:
        similar = [COMMON_WORDS[word]]
    else:
        similar = [name for name in known if name.rpartition(".")[2] == key] or get_close_matches(key, known, 1)
    where = f"; {target} has no such argument" if target else ""
    return f"{key}: there is no such key{where}" + (f"; did you mean {similar[0]}?" if similar else "")
