"""Losses, schedules and monitors that do not fit a run are refused before its model is built."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from vivit_train.parts import build_part, check_losses, check_monitors, check_optimizer, check_schedule
from vivit_train.training.module import VideoClassifier
from vivit_train.training.task import VideoTask
from vivit_train.utils.errors import UserError

COUNTS = {"verb": [3, 1], "noun": [2, 1, 1]}
OURS = "vivit_train.training.losses.CrossEntropy"
TORCH = "torch.optim.lr_scheduler"


class Constant(torch.nn.Module):
    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())


def no_number(total_steps: int) -> Callable[[int], float]:
    return lambda step: float("nan")


def with_loss(target: str, mixup: float = 0.0, **arguments: Any) -> DictConfig:
    return OmegaConf.create({"loss": {"_target_": target, **arguments}, "mixup": mixup, "cutmix": 0.0})


def with_schedule(target: str, **arguments: Any) -> DictConfig:
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
    scheduler = {"_target_": target, **arguments}
    return OmegaConf.create({"optimizer": optimizer, "scheduler": scheduler, "trainer": {"max_epochs": 2}})


@pytest.mark.parametrize(
    ("cfg", "multi_label", "message"),
    [
        (
            with_loss("torch.nn.MSELoss"),
            False,
            "for logits [3, 2] and class ids [3] (the shapes differ): set loss=",
        ),
        (with_loss("torch.nn.L1Loss"), False, "(the shapes differ)"),
        (with_loss("torch.nn.BCEWithLogitsLoss"), False, "set loss=cross_entropy, or a class that takes these"),
        (with_loss("torch.nn.MultiMarginLoss"), True, "and one float per class [2, 3]"),
        (with_loss("torch.nn.MultiMarginLoss", mixup=0.5), False, "and one float per class [3, 2]"),
        (with_loss(f"{__name__}.Constant"), False, "it is no tensor with a gradient"),
        (
            with_loss(OURS, class_weights=[1, 2, 3]),
            False,
            "[1, 2, 3]: must be balanced or 2 numbers, one per class",
        ),
        (with_loss(OURS, class_weights=[0, 0]), False, "loss.class_weights=[0, 0]: all are 0 for the classes"),
    ],
)
def test_a_loss_that_does_not_fit_the_targets_is_refused(cfg: DictConfig, multi_label: bool, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_losses(cfg, multi_label, {"": COUNTS["noun"]} if multi_label else COUNTS)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("cfg", "multi_label"),
    [
        (with_loss(OURS), False),
        (with_loss(OURS, mixup=0.5), False),
        (with_loss("vivit_train.training.losses.Focal"), True),
        (with_loss("torch.nn.BCEWithLogitsLoss"), True),
        (with_loss("torch.nn.MultiMarginLoss"), False),
        (with_loss("torch.nn.MSELoss", mixup=1.0), False),
    ],
)
def test_a_loss_that_fits_passes(cfg: DictConfig, multi_label: bool) -> None:
    check_losses(cfg, multi_label, {"": COUNTS["noun"]} if multi_label else COUNTS)


def test_what_a_class_refuses_is_named_by_key() -> None:
    swa = {"_target_": "lightning.pytorch.callbacks.StochasticWeightAveraging", "swa_lrs": 0.1}
    with pytest.raises(UserError) as error:
        build_part("callbacks.swa", OmegaConf.create(swa | {"swa_epoch_start": 7.5}), {})
    assert str(error.value).startswith("callbacks.swa.swa_epoch_start=7.5: lightning.pytorch.callbacks.Stochastic")
    assert str(error.value).endswith("change it, or leave it out")
    adam = {"_target_": "torch.optim.Adam", "lr": 0.1, "foreach": True, "fused": True}
    with pytest.raises(
        UserError, match=r"foreach=true, optimizer\.fused=true: torch\.optim\.Adam does not take these"
    ):
        check_optimizer(OmegaConf.create(adam))
    with pytest.raises(UserError, match="is no optimizer of PyTorch"):
        check_optimizer(OmegaConf.create({"_target_": "builtins.list"}))


def test_a_schedule_is_tried() -> None:
    check_schedule(with_schedule("vivit_train.training.optim.cosine", warmup_epochs=1), 10)
    check_schedule(with_schedule(f"{TORCH}.OneCycleLR", max_lr=0.1), 10)
    with pytest.raises(
        UserError, match=r"scheduler\.div_factor=0: torch\.optim\.lr_scheduler\.OneCycleLR does not"
    ):
        check_schedule(with_schedule(f"{TORCH}.OneCycleLR", max_lr=0.1, div_factor=0), 10)
    with pytest.raises(
        UserError, match=r"scheduler: torch\.optim\.lr_scheduler\.StepLR does not take its arguments"
    ):
        check_schedule(with_schedule(f"{TORCH}.StepLR", step_size=0), 10)
    with pytest.raises(UserError, match="its factor of the learning rate is no number: nan"):
        check_schedule(with_schedule(f"{__name__}.no_number"), 10)


class Task(VideoTask):
    val_scores = ("top1", "loss")  # type: ignore[assignment]


def test_a_monitor_that_is_never_logged_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "__module__", VideoClassifier.__module__)
    task = Task.__new__(Task)
    keeps = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val/score"}
    callbacks = OmegaConf.create({"checkpoint": keeps, "health": None})
    check_monitors(callbacks, task)
    callbacks.checkpoint.monitor = "val/foo"
    with pytest.raises(
        UserError, match=r"callbacks\.checkpoint\.monitor=val/foo: this run does not log it; it logs "
    ):
        check_monitors(callbacks, task)
    callbacks.other = {"_target_": "mypkg.LogsAnything"}
    check_monitors(callbacks, task)
