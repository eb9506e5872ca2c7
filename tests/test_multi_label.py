"""Videos of any number of classes, `path a;b`: from the annotation file to the score, in this process."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.synthetic import write_video
from vivit_train.models.weights.load import load_pretrained
from vivit_train.run import evaluate, train
from vivit_train.tools.doctor.run import write_clean
from vivit_train.training.checkpoint import load_checkpoint, restore_net
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
CLASSES = ("blue", "green", "red")


def draw(shown: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Noise, with more light of the colours that are shown: uint8 [T, H, W, 3]."""
    video = rng.integers(0, 120, (4, 36, 36, 3)) + [120 * (name in shown) for name in CLASSES[::-1]]
    return video.astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every subset of the three classes, four times in training and twice in validation."""
    folder, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    for split, copies in (("train", 4), ("val", 2)):
        lines = []
        for i, has in enumerate(list(product((True, False), repeat=3)) * copies):
            shown = [name for name, is_there in zip(CLASSES, has, strict=True) if is_there]
            write_video(folder / f"{split}{i}.mp4", draw(shown, rng), 12)
            lines.append(f'{split}{i}.mp4 "{";".join(shown)}"\n')
        (folder / f"{split}.csv").write_text("".join(lines))
    return folder


def several(root: Path) -> list[str]:
    return ["data=csv", f"data.root={root}", "data.reader.multi_label=true", "data.flip=0"]


def test_they_are_learned_scored_and_repeated(
    root: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learning = ["trainer.max_epochs=4", "scheduler.warmup_epochs=1", "optimizer.lr=0.003", "data.color_jitter=0"]
    best = train(config(*several(root), *learning, "loss.label_smoothing=0.1", pictures=True))
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert "train    32 clips, 16 per class; 1.5 classes per clip, 4 clips without a label" in printed
    assert f"val map {best:.3f}" in printed
    trained = json.loads((run / "metrics.json").read_text())
    assert trained["test/map@1x1"] == pytest.approx(best)
    assert best > 0.95
    assert (trained["classes"], trained["n"], trained["failed"]) == (3, 16, 0)
    assert not [name for name in trained if "top1" in name]
    for name in ("contact_sheet.png", "curves.png", "average_precision.png"):
        assert (run / name).stat().st_size > 0, name
    assert not (run / "confusion.png").exists()
    assert load_checkpoint(run / "checkpoints/best.ckpt")[0].multi_label

    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert [row["label"] for row in rows[:3]] == ["blue;green;red", "blue;green", "blue;red"]
    for row in rows:
        said = [name for name in CLASSES if float(row[f"logit:{name}"]) > 0]
        assert row["prediction"] == ";".join(said)
    assert np.mean([row["label"] == row["prediction"] for row in rows]) > 0.8

    ckpt = f"ckpt_path={run}/checkpoints/best.ckpt"
    for other in ([], ["data=csv", f"data.root={root}"]):  # other data are read as the model answers
        again = evaluate(config(ckpt, *other, name="eval"))
        assert again["test/map@1x1"] == trained["test/map@1x1"]


def test_a_video_that_cannot_be_read_counts(root: Path, config: Config, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(root, broken)
    (broken / "val0.mp4").write_text("not a video")
    train(config(*several(broken), "mixup=0.4", "data.balance=class", "data.limit_per_class=9"))
    results = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (results["n"], results["failed"]) == (16, 1)
    rows = list(csv.DictReader((tmp_path / "run/predictions.csv").open()))
    assert (rows[0]["label"], rows[0]["prediction"], rows[0]["failed"]) == ("blue;green;red", "", "1")


@pytest.mark.slow
def test_a_model_of_one_kind_starts_one_of_the_other_and_is_not_scored_as_one(
    root: Path, config: Config, tmp_path: Path
) -> None:
    """The classes are the same; what the head says of them is not."""
    single = tmp_path / "single"
    for split in ("train", "val"):
        for i, name in enumerate(CLASSES):
            (single / split / name).mkdir(parents=True)
            shutil.copy(root / f"{split}{i}.mp4", single / split / name)
    folder = ["data=folder", f"data.root={single}"]
    train(config(*several(root), "optimizer.lr=0.1"))
    (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "several.ckpt")

    train(config(*folder, f"init.path={tmp_path}/several.ckpt", "optimizer.lr=0", "overwrite=true"))
    text = " ".join((tmp_path / "run/weight_report.txt").read_text().split())
    assert "zero (trained for any number of classes per video) head.weight" in text
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert load_checkpoint(last)[1]["head.weight"].count_nonzero() == 0
    with pytest.raises(UserError, match="to predict any number of classes per video, but data=folder has one"):
        evaluate(config(f"ckpt_path={tmp_path}/several.ckpt", *folder, name="eval"))
    with pytest.raises(UserError, match=r"data\.reader\.multi_label has no effect"):
        evaluate(config(f"ckpt_path={last}", *several(root)[:3], name="eval"))

    for ckpt, head in (
        ("several.ckpt", "copied head.weight"),
        ("run/checkpoints/last.ckpt", "zero (trained for one class per video) head.weight"),
    ):
        net = restore_net(*load_checkpoint(last), last)
        report = load_pretrained(net, str(tmp_path / ckpt), classes={"": CLASSES}, multi_label=True)
        assert head in " ".join(report.full().split())
        assert bool(net.head.weight.count_nonzero()) == (ckpt == "several.ckpt")


def test_the_doctor_s_clean_lists_hold_them(root: Path, tmp_path: Path) -> None:
    splits = read_csv(root, train="train.csv", val="val.csv", multi_label=True)
    manifests = {"train": splits.train, "val": splits.val}
    words = write_clean(tmp_path, splits, manifests, {"train": {0}, "val": set()}, "csv")
    assert words == f"data=csv data.root={tmp_path} data.reader.multi_label=true"
    clean = read_csv(tmp_path, train="train.csv", val="val.csv", multi_label=True)
    assert clean.classes == splits.classes
    for before, after in ((splits.train.select(np.arange(1, 32)), clean.train), (splits.val, clean.val)):
        assert before.paths.tolist() == after.paths.tolist()
        for row in range(len(before)):
            assert before.labels_of(row) == after.labels_of(row)


def test_a_flipped_clip_has_the_classes_of_its_mirror_image(root: Path, tmp_path: Path) -> None:
    names = ["go left", "go right", "jump"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    (tmp_path / "train.csv").write_text(f"{root}/train0.mp4 go left;jump\n{root}/train1.mp4 go left;go right\n")
    reader = partial(read_csv, classes="classes.txt", multi_label=True)
    files = {"train": "train.csv", "val": "train.csv"}
    size = {"frames": 2, "stride": 1, "crop": 32, "short_side": 36}
    data = VideoDataModule(
        "csv", str(tmp_path), reader, **files, **size, flip=0.5, mirror_labels=True, num_workers=0
    )
    clips = data.train_dataloader().dataset
    seen = [{tuple(clips[epoch, 0, row]["label"].tolist()) for epoch in range(12)} for row in range(2)]
    assert seen == [{(True, False, True), (False, True, True)}, {(True, True, False)}]
