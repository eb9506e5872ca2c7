"""task=pretrain: runs, resumes and processes; what it starts, what it refuses, and data without labels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, run_script
from omegaconf import DictConfig

from vivit_train import load
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.unlabeled import read_paths, read_videos
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import load_pretrained
from vivit_train.run import evaluate, train
from vivit_train.tools.overrides import compose_words
from vivit_train.training.pretraining import VALIDATION, MaskedPretraining
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
SHORT = ["trainer.max_epochs=1", "global_batch_size=8", "task.decoder_depth=1", "model.tubelet=[2,8,8]"]
SMALL: dict[str, Any] = {"dim": 32, "depth": 1, "heads": 2, "frames": 4, "image_size": 32, "tubelet": (2, 8, 8)}


def pretrain(config: Config, videos: Path, *words: str, pictures: bool = False) -> Path:
    cfg = config("task=pretrain", "data=folder", f"data.root={videos}", *SHORT, *words, pictures=pictures)
    train(cfg)
    return Path(cfg.run_dir) / "checkpoints"


def test_a_run_shows_what_it_reconstructs_and_starts_a_training(
    videos: Path, config: Config, tmp_path: Path
) -> None:
    best = pretrain(config, videos, "trainer.max_epochs=2", pictures=True) / "best.ckpt"
    run = tmp_path / "run"
    scores = json.loads((run / "metrics.json").read_text())
    state = torch.load(best, weights_only=True)
    assert scores["val/n"] == 8
    (kept,) = (part for name, part in state["callbacks"].items() if name.startswith("ModelCheckpoint"))
    assert scores["val/loss"] == pytest.approx(-float(kept["best_model_score"]), rel=1e-5)
    assert (run / "reconstructions.png").stat().st_size > 10_000
    assert not (run / "predictions.csv").exists()
    with pytest.raises(UserError, match=r"best.ckpt is of task=pretrain: it has no head.*init.path="):
        evaluate(config(f"ckpt_path={best}", name="eval"))
    with pytest.raises(UserError, match="is of task=pretrain"):
        load(best)
    run.rename(tmp_path / "pretrained")
    start = tmp_path / "pretrained/checkpoints/best.ckpt"
    train(config("data=folder", f"data.root={videos}", *SHORT[:2], SHORT[3], f"init.path={start}"))
    report = (run / "weight_report.txt").read_text()
    assert "zero (the source has no head)" in report
    assert "random" not in report


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
def test_its_weights_start_every_model(model: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ViViT(model, num_classes={}, temporal_depth=1, **SMALL)
    task = MaskedPretraining(net, [0.5] * 3, [0.5] * 3, decoder_depth=1)
    settings = {"model": model, "image_size": 32, "frames": 4, "tubelet": [2, 8, 8], "heads": 2}
    metadata = {"config": {"model": settings}, "classes": {}, "mean": [0.5] * 3, "std": [0.5] * 3}
    torch.save({"state_dict": task.state_dict(), "vivit_train": metadata}, tmp_path / "x.ckpt")
    started = ViViT(model, num_classes=5, temporal_depth=1, **SMALL)
    rows = load_pretrained(started, str(tmp_path / "x.ckpt"), classes={"": list("abcde")}).rows
    assert {row for name, row in rows.items() if not name.startswith("head")} == {"copied"}
    assert torch.equal(started.encoder.pos_embed, net.encoder.pos_embed)


def test_masks_are_functions_of_seed_epoch_and_clip() -> None:
    net = ViViT("vivit_st", num_classes={}, **SMALL)
    tasks = [MaskedPretraining(net, [0.5] * 3, [0.5] * 3, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (task.clip_seeds([4, 9, 4], 3) for task in tasks)
    assert first == same != other
    assert len(set(first)) == 3  # two clips of one video differ
    assert tasks[0].clip_seeds([9], 3) == first[1:2]
    assert tasks[0].clip_seeds([9], 4) != first[1:2]
    assert tasks[0].clip_seeds([9], VALIDATION) == tasks[1].clip_seeds([9], VALIDATION)


def test_everything_that_it_does_not_use_is_refused_at_once(videos: Path, config: Config) -> None:
    words = ["mixup=0.3", "cutmix=0.1", "loss=focal", "train=lora", "ema_decay=0.9", "layer_decay=0.7"]
    words += ["data.balance=class", "eval.views=4x3", "data.reader.class_level=1", "model.compile=true"]
    words += ["task.mask_ratio=1.5", "+task.net=3"]
    with pytest.raises(UserError) as error:
        pretrain(config, videos, *words)
    unused = (
        "mixup=0.3,cutmix=0.1,loss=vivit_train.training.losses.Focal,train=lora,ema_decay=0.9,layer_decay=0.7,"
    )
    unused += "data.balance=class,eval.views,data.reader.class_level,model.compile=True"
    for text in (
        *(f"{key}: task=pretrain does not use it" for key in unused.split(",")),
        "task.mask_ratio=1.5: must be between 0.01 and 0.99",
        "task.net: set model instead",
    ):
        assert f"  - {text}" in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["task.decoder_dim=30", "task.decoder_heads=4"],
            "decoder_dim 30 is not a multiple of decoder_heads 4: set",
        ),
        (["model.rope=true", "model=vivit_st"], r"set model\.rope=false"),
        (["debug=overfit"], "debug=overfit: task=pretrain masks each clip anew"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_pretrained_is_refused(
    words: list[str], message: str, videos: Path, config: Config
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(config, videos, *words)


def test_classification_refuses_what_only_pretraining_has(videos: Path, config: Config) -> None:
    with pytest.raises(UserError, match=r"task\.mask_ratio.*no such key"):
        train(config("data=folder", f"data.root={videos}", "+task.mask_ratio=0.5"))


def test_commands_that_need_labels_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task=pretrain has no effect here, only for vivit train"):
        compose_words(["task=pretrain"], tmp_path)


def same(one: Path, other: Path) -> None:
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vivit_fe", "vivit_st", "vivit_fsa", "vivit_fdp"])
def test_a_resumed_run_has_the_weights_of_one_that_was_not(
    model: str, videos: Path, config: Config, tmp_path: Path
) -> None:
    words = [f"model={model}", "model.drop_path=0.2", "data.clips_per_video=2", "scheduler=constant"]
    pretrain(config, videos, *words, "trainer.max_epochs=2")
    (tmp_path / "run").rename(tmp_path / "whole")
    pretrain(config, videos, *words)
    resumed = pretrain(config, videos, *words, "trainer.max_epochs=2", "resume=auto") / "last.ckpt"
    same(resumed, tmp_path / "whole/checkpoints/last.ckpt")
    changed = ["trainer.max_epochs=3", "resume=auto", "task.mask_ratio=0.5"]
    with pytest.raises(UserError, match=r"task\.mask_ratio: 0\.75 in the checkpoint, 0\.5 here"):
        pretrain(config, videos, *words, *changed)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
def test_two_processes_train_as_one(model: str, videos: Path, tmp_path: Path) -> None:
    small = ["task=pretrain", f"model={model}", "data=folder", f"data.root={videos}", *TINY, *SHORT]
    ends = []
    for trainer in ("cpu", "ddp_cpu"):
        words = [*small, "optimizer=sgd", "optimizer.lr=0.01", f"trainer={trainer}", f"hydra.run.dir={trainer}"]
        result = run_script("train.py", *words, folder=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        ends.append(torch.load(tmp_path / trainer / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-3) for name in ends[0])
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cpu", "ddp_cpu")]
    assert scores[0]["val/loss"] == pytest.approx(scores[1]["val/loss"], rel=1e-3)


def test_videos_need_no_class_folders(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "loose"
    (root / "deep/er").mkdir(parents=True)
    files = sorted(videos.glob("train/*/*.mp4"))
    for number, file in enumerate(files[:10]):
        shutil.copy(file, root / ("deep/er" if number % 2 else "") / f"{number}.mp4")
    splits = read_videos(root)
    assert (splits.classes, len(splits.train), len(splits.val), splits.test) == ({}, 8, 2, None)
    assert splits.train.targets.shape == (8, 0)
    (tmp_path / "empty/a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no videos in .*empty\nExpected in"):
        read_videos(tmp_path / "empty")


def test_the_clips_held_out_of_class_folders_are_those_of_a_training(videos: Path) -> None:
    root = videos / "train"
    with_labels, without = (read(root, val_percent=34) for read in (read_folder, read_videos))
    assert with_labels.val.ids.tolist() == without.val.ids.tolist()
    assert with_labels.train.ids.tolist() == without.train.ids.tolist()


@pytest.mark.parametrize("row", ["{path}", '"{path}"', "{path} 3", "{path},a class"])
def test_a_list_may_have_paths_alone(row: str, videos: Path, tmp_path: Path) -> None:
    files = sorted(videos.glob("train/*/*.mp4"))[:10]
    (tmp_path / "a.csv").write_text("\n".join(row.format(path=file) for file in files))
    splits = read_paths(tmp_path, train="a.csv", val=None)
    assert (splits.classes, len(splits.train), len(splits.val)) == ({}, 8, 2)
    both = read_paths(tmp_path, train="a.csv", val="a.csv")
    assert (len(both.train), len(both.val)) == (10, 10)
    (tmp_path / "b.csv").write_text("a.mp4\nnothing\n")
    with pytest.raises(UserError, match="malformed rows"):
        read_paths(tmp_path, train="b.csv", val=None)
