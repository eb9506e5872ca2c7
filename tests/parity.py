"""How far our numbers are from the reference's, for the tests and for docs/fidelity.md."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from vivit_train.model.exchange import load_scenic
from vivit_train.model.vivit import ModelName
from vivit_train.task import VideoClassification

GOLDENS = Path(__file__).parent / "goldens"  # outputs of the reference code on tiny random models
MODELS: dict[str, ModelName] = {
    "spacetime": "vivit_st",
    "factorized_encoder": "vivit_fe",
    "factorized_self_attention": "vivit_fsa",
    "factorized_dot_product": "vivit_fdp",
}
HALF = [0.5] * 3
Tree = dict[str, np.ndarray[Any, Any]]


def scenic(case: str) -> tuple[Tree, dict[str, Any], dict[str, Any]]:
    """The arrays of a golden of the authors' code, its configuration, and what `load_scenic` must be told."""
    config = json.loads((GOLDENS / "scenic" / case / "config.json").read_text())
    with np.load(GOLDENS / "scenic" / case / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    settings = {
        "model": MODELS[case.removeprefix("trainstep_")],
        "frames": config["input_shape"][1],
        "image_size": tuple(config["input_shape"][2:4]),
        "pool": {"token": "cls", "gap": "mean"}[config["model"]["classifier"]],
        "order": config["model"]["attention_config"].get("attention_order", "space_time"),
    }
    return arrays, config, settings


def part(arrays: Tree, prefix: str) -> Tree:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


class Log(L.Callback):
    """What the task logged in each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        names = {"train/loss_step": "loss", "train/grad_norm": "grad_norm", "train/lr": "lr"}
        self.steps.append({short: float(trainer.callback_metrics[name]) for name, short in names.items()})


def trainstep_errors(case: str, precision: Any) -> dict[str, float]:
    """The largest difference of loss, gradient norm and learning rate over the authors' four steps, and of the
    parameters after them; all through our LightningModule, optimizer and Lightning's Trainer.

    Raises:
        AssertionError: the steps left a parameter where it was.
    """
    arrays, config, settings = scenic(case)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    schedule, classes = config["lr"]["lr_configs"], config["num_classes"]
    start, end = (load_scenic(part(arrays, at), **settings) for at in ("params0/", "params_end/"))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    task = VideoClassification(
        start,
        {"": [str(i) for i in range(classes)]},
        HALF,
        HALF,
        optimizer=lambda groups: torch.optim.SGD(
            groups, lr=schedule["base_learning_rate"], momentum=config["momentum"]
        ),
        total_steps=schedule["steps_per_cycle"],
        warmup_steps=schedule["warmup_steps"],
        label_smoothing=config["label_smoothing"],
    )
    batches: Any = []
    for step in range(4):
        share = float(arrays[f"step{step}/lambda"])
        video = torch.from_numpy(arrays[f"step{step}/video"]).to(dtype).permute(0, 1, 4, 2, 3)
        label = F.one_hot(torch.from_numpy(arrays[f"step{step}/label"]), classes).to(dtype)
        mixed, target = (share * x + (1 - share) * x.flip(0) for x in (video, label))  # their pairing
        batches.append({"video": (mixed + 1) * 127.5, "label": target})
    log = Log()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_epochs=1,
        gradient_clip_val=config["clip"],
        callbacks=[log],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))

    errors = {
        name: max(abs(step[name] - float(arrays[f"step{i}/{name}"])) for i, step in enumerate(log.steps))
        for name in ("loss", "grad_norm", "lr")
    }
    expected = end.state_dict()
    assert all((before[name] - value).abs().max() > 1e-3 for name, value in expected.items())
    errors["parameters"] = max(largest(task.net.state_dict()[name], value) for name, value in expected.items())
    return errors


def forward_error(case: str, dtype: torch.dtype, eager: bool = False) -> float:
    """Of the logits, against the authors' in float64."""
    arrays, _, settings = scenic(case)
    net = load_scenic(part(arrays, "params/"), **settings).eval().to(dtype).use_eager_attention(eager)
    with torch.no_grad():
        logits = net(torch.from_numpy(arrays["input/video"]).permute(0, 4, 1, 2, 3).to(dtype))
    assert isinstance(logits, Tensor)
    return largest(logits, torch.from_numpy(arrays["output/logits_f64"]))


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference."""
    return (ours.detach().double() - theirs.double()).abs().max().item()
