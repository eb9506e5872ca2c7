"""Translates the configuration in a checkpoint of an earlier version, whose keys had other names."""

from collections.abc import Mapping
from typing import Any

PADDING = {"loop": "wrap", "edge": "repeat_last", "pad": "black"}


def with_current_keys(config: Any) -> Any:
    """Returns a stored configuration with the current names of its keys; earlier checkpoints have other names.

    Values of an unexpected type stay as they are, for the checks that follow.
    """
    if not isinstance(config, Mapping):
        return config
    config = dict(config)
    if isinstance(config.get("data"), Mapping):
        data = dict(config["data"])
        if "squash" in data:
            squash = data.pop("squash")
            data["resize_mode"] = ("stretch" if squash else "keep_ratio") if type(squash) is bool else squash
        if "short" in data:
            short = data.pop("short")
            data["padding"] = PADDING.get(short, short) if isinstance(short, str) else short
        for old, new in (("global_batch", "global_batch_size"), ("micro_batch", "micro_batch_size")):
            if old in data:
                config[new] = data.pop(old)
        for name in ("bad_videos_file", "seed"):
            data.pop(name, None)
        if _finds_test_split(data):
            data["test"] = "auto"
        config["data"] = data
    if isinstance(config.get("task"), Mapping) and "_target_" not in config["task"]:
        task = config.pop("task")
        config |= {name: task.get(name, 0.0) for name in ("mixup", "cutmix")}
        config["loss"] = {"_target_": "cross_entropy", "label_smoothing": task.get("label_smoothing", 0.0)}
        if isinstance(task.get("optimizer"), Mapping):
            optimizer = {name: value for name, value in task["optimizer"].items() if name != "_partial_"}
            config["optimizer"] = optimizer | {"weight_decay": task.get("weight_decay", 0.0)}
    return config


def _finds_test_split(data: Mapping[str, Any]) -> bool:
    """Returns whether null for the test split means to look for its folder, as it did until 2026-11-29.

    Later configurations have the key `class_level` in the node of the reader, and null means no test split.
    """
    reader = data.get("reader")
    if not isinstance(reader, Mapping) or "class_level" in reader or data.get("test") is not None:
        return False
    return str(reader.get("_target_")).rpartition(".")[2] in ("folder", "read_folder", "demo", "read_demo")
