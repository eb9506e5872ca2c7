"""Losses, configurations and a run's folder of 2026-11-28, which moves of code and new names must not change.

`python tests/test_nets.py` writes losses.json and configs.json again, after a change that is meant to change them.
"""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, TINY
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vivit_train.data.synthetic import make_demo
from vivit_train.run import evaluate, train
from vivit_train.utils.moved_keys import moved_hint

Config = Callable[..., DictConfig]
NETS = ROOT / "tests/nets"
RUN = [
    "trainer.max_epochs=7",
    "optimizer.lr=0.001",
    "scheduler.warmup_epochs=1",
    "mixup=0.3",
    "model.drop_path=0.2",
    "micro_batch_size=4",
    "data.flip=0.5",
]
GROUPS = ("recipe", "model")
LATER = ("none", "labelstudio", "cvat", "videomae", "few_clips")  # recipes and models that did not exist
LOGGED = ["trainer.log_every_n_steps=1", "callbacks.contact_sheet=null"]


def flat(node: Any, above: str = "") -> dict[str, Any]:
    """Keys joined by dots. Of a `_target_` the last name alone: files move."""
    if not isinstance(node, dict) or not node:
        return {above: node.rpartition(".")[2] if above.endswith("_target_") else node}
    below = [flat(value, f"{above}.{key}" if above else str(key)) for key, value in node.items()]
    return {name: value for part in below for name, value in part.items()}


def resolved(*overrides: str) -> dict[str, Any]:
    cfg = compose("train", ["run_dir=run", *overrides])
    return flat(OmegaConf.to_container(cfg, resolve=True))


PAPER = ("demo", "epic_kitchens100", "finetune", "kinetics400", "moments_in_time", "something_something_v2")


def all_configurations(quick: bool = False) -> dict[str, dict[str, Any]]:
    """Every value of the default; of each recipe with each model the values that differ from it.

    Args:
        quick: the recipes of `PAPER` with one model, and each model with one recipe.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = {"default": (base := resolved())}
        names = {
            group: sorted(file.stem for file in (ROOT / "conf" / group).glob("[!_]*.yaml")) for group in GROUPS
        }
        for recipe in [name for name in names["recipe"] if name not in LATER and (not quick or name in PAPER)]:
            models = [name for name in names["model"] if name not in LATER]
            for model in models if not quick or recipe == "demo" else ["vivit_fe"]:
                words = f"recipe={recipe}", f"model={model}"
                cfg = resolved(*words)
                keys = [key for key in sorted(cfg | base) if cfg.get(key, "absent") != base.get(key, "absent")]
                found[" ".join(words)] = {key: cfg.get(key, "absent") for key in keys}
    return found


def logged(file: Path, column: str) -> list[float]:
    with file.open() as lines:
        return [float(row[column]) for row in csv.DictReader(lines) if row[column]]


def settings(videos: Path) -> list[str]:
    return ["data=folder", f"data.root={videos}", *RUN, *LOGGED]


VALUES = {  # of 2026-11-28, as they are written now
    "data.padding": {"loop": "wrap"},
    "data.resize_mode": {False: "keep_ratio"},
    "optimizer._target_": {None: "AdamW"},
    "data.test": {None: "auto"},  # null means no test split now
}
GONE = {
    "data.bad_videos_file",
    "data.seed",
    "task.seed",
    "logger.first_step",
    "optimizer._partial_",
    "optimizer.fused",
}
# What recipes have changed on purpose, by recipe: the value now, and the reason.
CHANGES: dict[str, dict[str, tuple[Any, str]]] = {
    **{
        name: {"data.fps": (12.5, "the authors' stride of 2 is one of videos of 25 fps")}
        for name in (
            *("kinetics400", "kinetics600", "kinetics700"),
            *("authors_kinetics400_fe_b", "authors_kinetics400_fe_l", "authors_kinetics600_fe_l"),
        )
    },
    "something_something_v2": {"data.stride": (1, "at 12 fps, stride 2 makes clips longer than most videos")},
    "modern_kinetics": {
        "data.fps": (15, "TAdaConv's stride 2 at 30 fps"),
        "data.scale_jitter": ([1.0, 1.25], "TAdaConv's 256 to 320 pixels"),
        "init.mean": ([0.45] * 3, "TAdaConv's"),
        "init.std": ([0.225] * 3, "TAdaConv's"),
        "trainer.gradient_clip_val": (None, "TAdaConv does not clip"),
    },
    "modern_epic_kitchens100": {
        "data.fps": (30, "TAdaConv's stride 2 at 60 fps"),
        "init.mean": ([0.45] * 3, "TAdaConv's"),
        "init.std": ([0.225] * 3, "TAdaConv's"),
        "trainer.gradient_clip_val": (None, "TAdaConv does not clip"),
        "scheduler.warmup_epochs": (5, "TAdaConv's"),
        "eval.views": ("4x3", "the views of the accuracy that TAdaConv publishes"),
    },
}
NEW = {
    "callbacks.advice._target_",
    "callbacks.advice.epochs",
    "data.resize",  # its default is what every run did
    "data.square_pixels",
    "eval.hardest_first",
    "eval.report",
    "init.heads",
    "init.source",
    "loss._target_",
    "loss.class_weights",
    "overwrite",
    "patience",
    "scheduler._target_",
    "task._target_",
    "train",
    "cache",
    "cache_views",
    "layer_decay",
    "data.randaugment_kind",  # the recipes of EPIC-Kitchens and Something-Something used torchvision's operations
    *(f"model.{name}" for name in ("act", "pos_embed", "fc_norm", "pre_norm", "reg_tokens", "rope", "norm_eps")),
}


def as_written_now(old: dict[str, Any]) -> dict[str, Any]:
    """Values of 2026-11-28 by the names that the keys have now."""
    new: dict[str, Any] = {}
    for key, value in old.items():
        name = moved_hint(key).rpartition(" is now ")[2] or key
        if name not in GONE:
            value = VALUES.get(name, {}).get(value, value) if not isinstance(value, list) else value
            assert new.setdefault(name, value) == value, key
    return new


def compare(found: dict[str, dict[str, Any]], stored: dict[str, dict[str, Any]]) -> None:
    """Each configuration in full: the stored ones are differences from the default."""
    for name, cfg in found.items():
        now = {k: v for k, v in (found["default"] | cfg).items() if v != "absent" and k not in NEW}
        then = as_written_now({k: v for k, v in (stored["default"] | stored[name]).items() if v != "absent"})
        recipe = name.removeprefix("recipe=").partition(" ")[0]
        assert now == then | {key: value for key, (value, _) in CHANGES.get(recipe, {}).items()}, name


def test_the_paper_s_recipes_and_every_model_are_configured_as_they_were() -> None:
    compare(all_configurations(quick=True), json.loads((NETS / "configs.json").read_text()))


@pytest.mark.slow
def test_every_recipe_with_every_model_is_configured_as_it_was() -> None:
    compare(all_configurations(), json.loads((NETS / "configs.json").read_text()))


def test_twenty_steps_have_the_losses_that_they_had(videos: Path, config: Config, tmp_path: Path) -> None:
    """To a relative 1e-3, as processors differ; `make gate` compares bits, on one machine."""
    train(config(*settings(videos)))
    losses = logged(tmp_path / "run/metrics.csv", "train/loss_step")
    assert losses == pytest.approx(json.loads((NETS / "losses.json").read_text()), rel=1e-3)


def test_an_old_checkpoint_is_scored_as_it_was(videos: Path, config: Config, tmp_path: Path) -> None:
    ckpt, out = NETS / "run/checkpoints/last.ckpt", tmp_path / "results/predictions.csv"
    evaluate(config(f"ckpt_path={ckpt}", f"data.root={videos}", name="eval"))
    with out.open() as now, (NETS / "predictions.csv").open() as then:
        for row, old in zip(csv.DictReader(now), csv.DictReader(then), strict=True):
            logits = [float(value) for name, value in row.items() if name.startswith("logit:")]
            assert logits == pytest.approx(
                [float(value) for name, value in old.items() if name.startswith("logit:")], abs=0.02
            )
            assert (row["id"], row["label"]) == (old["id"], old["label"])


def test_an_old_runs_folder_is_resumed(videos: Path, config: Config, tmp_path: Path) -> None:
    shutil.copytree(NETS / "run", tmp_path / "run")
    pairs = [word.split("=", 1) for word in json.loads((NETS / "run/outcome.json").read_text())["overrides"]]
    words = [f"{moved_hint(key).rpartition(' is now ')[2] or key}={value}" for key, value in pairs]
    new = [f"data.root={videos}", "trainer.max_epochs=3", "resume=auto", "data.changed=accept"]
    train(config(*words, *new, tiny=False))
    assert logged(tmp_path / "run/metrics.csv", "train/loss_step")[:6] == logged(
        NETS / "run/metrics.csv", "train/loss_step"
    )
    steps = logged(tmp_path / "run/metrics.csv", "step")
    assert max(steps) == 9
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 9


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_demo(folder / "videos", size=36, num_frames=12, train_per_class=3, val_per_class=1, test_per_class=2)
        words = [*TINY, *settings(folder / "videos"), f"hydra.run.dir={folder / 'run'}"]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=True)
        (NETS / "losses.json").write_text(
            json.dumps(logged(folder / "run/metrics.csv", "train/loss_step"), indent=0)
        )
    (NETS / "configs.json").write_text(json.dumps(all_configurations(), indent=0))
