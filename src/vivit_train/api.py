"""What a Python program needs besides the classes: configurations without a command line, and checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as compose_config
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from vivit_train.training.checkpoint import load_checkpoint, restore_net
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError
from vivit_train.utils.moved_keys import moved_hint


def compose(*overrides: str, run_dir: str | Path, command: str = "train") -> DictConfig:
    """Returns the configuration that train.py or eval.py would have with these overrides.

    Args:
        overrides: Words of the command line, such as "data=folder" or "optimizer.lr=0.001".
        run_dir: The folder of the results, which is created.
        command: "train" or "eval".

    Raises:
        UserError: An override is invalid.
    """
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose_config(command, [f"run_dir={run_dir}", *overrides])
        except HydraException as error:
            raise UserError(moved_hint(str(error)).removeprefix("; ") or str(error)) from error


def load_model(ckpt_path: str | Path, *, trusted: Sequence[str] = ()) -> VideoClassifier:
    """Returns the model of a checkpoint of vivit-train, on the CPU and in evaluation mode.

    Its `classes` are the class names by head. Calling it with clips gives logits; see `VideoClassifier.forward`.

    Args:
        ckpt_path: The checkpoint. Nothing in it is executed.
        trusted: Your own packages whose classes the checkpoint may name.

    Raises:
        UserError: The file is not a checkpoint, or names a class outside of vivit_train and `trusted`.
    """
    metadata, weights = load_checkpoint(ckpt_path)
    net = restore_net(metadata, weights, ckpt_path, trusted)
    multi_label = metadata.multi_label
    return VideoClassifier(net, metadata.classes, metadata.mean, metadata.std, multi_label=multi_label).eval()
