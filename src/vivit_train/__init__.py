"""vivit-train: trains and evaluates ViViT (arXiv 2103.15691) on videos.

    import vivit_train

    net = vivit_train.create_model("vivit_fe", size="B", num_classes=400)
    report = vivit_train.load_pretrained(net, "vit_base.safetensors")
    result = vivit_train.train("data=folder", "data.root=videos", run_dir="runs/mine")
    model = vivit_train.load("runs/mine")
    print(model.predict("video.mp4", views="4x3"))

Importing the package does nothing else: each name below is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vivit_train.composition import compose
    from vivit_train.data.datamodule import VideoDataModule
    from vivit_train.loading import load
    from vivit_train.models.vivit import ViViT, create_model
    from vivit_train.models.weights.load import load_pretrained
    from vivit_train.predictions import Label, Prediction
    from vivit_train.results import EvaluationResult, TrainResult, evaluate, train
    from vivit_train.training.evaluation import load_model
    from vivit_train.training.module import VideoClassifier
    from vivit_train.video_model import VideoModel

HOMES = {
    "EvaluationResult": "results",
    "Label": "predictions",
    "Prediction": "predictions",
    "TrainResult": "results",
    "ViViT": "models.vivit",
    "VideoClassifier": "training.module",
    "VideoDataModule": "data.datamodule",
    "VideoModel": "video_model",
    "compose": "composition",
    "create_model": "models.vivit",
    "evaluate": "results",
    "load": "loading",
    "load_model": "training.evaluation",
    "load_pretrained": "models.weights.load",
    "train": "results",
}
__all__ = [
    "EvaluationResult",
    "Label",
    "Prediction",
    "TrainResult",
    "ViViT",
    "VideoClassifier",
    "VideoDataModule",
    "VideoModel",
    "compose",
    "create_model",
    "evaluate",
    "load",
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
