"""vivit-train: trains and evaluates ViViT (arXiv 2103.15691) on videos.

    import vivit_train

    net = vivit_train.create_model("vivit_fe", size="B", num_classes=400)
    report = vivit_train.load_pretrained(net, "vit_base.safetensors")
    cfg = vivit_train.compose("data=folder", "data.root=videos", run_dir="runs/mine")
    score = vivit_train.train(cfg)
    classifier = vivit_train.load_model("runs/mine/checkpoints/best.ckpt")

Importing the package does nothing else: each name below is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vivit_train.composition import compose
    from vivit_train.data.datamodule import VideoDataModule
    from vivit_train.models.vivit import ViViT, create_model
    from vivit_train.models.weights.load import load_pretrained
    from vivit_train.run import evaluate, train
    from vivit_train.training.evaluation import load_model
    from vivit_train.training.module import VideoClassifier

HOMES = {
    "ViViT": "models.vivit",
    "VideoClassifier": "training.module",
    "VideoDataModule": "data.datamodule",
    "compose": "composition",
    "create_model": "models.vivit",
    "evaluate": "run",
    "load_model": "training.evaluation",
    "load_pretrained": "models.weights.load",
    "train": "run",
}
__all__ = [
    "ViViT",
    "VideoClassifier",
    "VideoDataModule",
    "compose",
    "create_model",
    "evaluate",
    "load_model",
    "load_pretrained",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("vivit-train")
    if name not in HOMES:
        raise AttributeError(f"module 'vivit_train' has no attribute {name!r}")
    return getattr(import_module(f"vivit_train.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
