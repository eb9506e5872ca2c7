"""Checkpoints of random weights, which need no training."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vivit_train.models.choices import Train
from vivit_train.models.tuning import set_trained
from vivit_train.models.vivit import ViViT
from vivit_train.training.checkpoint import Metadata, num_classes
from vivit_train.training.targets import MODELS, build

SIZES: dict[str, Any] = {"frames": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 24, "tubelet": [2, 16, 16]}
DATA = {"_target_": "videos", "name": "x", "root": "x", "frames": 4, "stride": 2, "crop": 32, "short_side": 36}


def randomize(net: ViViT) -> ViViT:
    """Every parameter is drawn anew, so that videos differ in their logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.5)
    return net


def checkpoint(
    path: Path,
    classes: dict[str, list[str]],
    multi_label: bool = False,
    *,
    model: Mapping[str, Any] = MappingProxyType({}),
    tuning: Train = "all",
    **data: Any,
) -> Path:
    """Writes a checkpoint of random weights.

    `tuning` is the choice of `train`; `model` and `data` are further settings of their nodes.
    """
    node = {"_target_": "vivit", "model": "vivit_st", "image_size": 32, **SIZES, **model}
    net = build(node, MODELS, "model", num_classes=num_classes(classes))
    set_trained(net, tuning)
    randomize(net)
    config = {"model": node, "data": DATA | data, "micro_batch_size": 4, "seed": 0}
    metadata = Metadata(config, classes, [0.4] * 3, [0.3] * 3, multi_label)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"vivit_train": metadata.to_dict(), "state_dict": state}, path)
    return path
