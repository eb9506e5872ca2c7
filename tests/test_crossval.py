"""Cross-validation: every clip is tested once a seed, by a run that has seen none of its group."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_python
from helpers import TINY, TINY_PROBE
from omegaconf import DictConfig

from vivit_train import create_model
from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.table import ClipTable
from vivit_train.tools.crossval import command
from vivit_train.tools.crossval.groups import groups_of
from vivit_train.tools.crossval.run import Choices, crossval, joined, training_words
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
TINY_NET = {"dim": 32, "depth": 1, "heads": 2, "frames": 4, "image_size": 32, "tubelet": (1, 16, 16)}


def table(*paths: str) -> ClipTable:
    names = np.array(paths, np.dtypes.StringDType())
    return ClipTable(names, np.zeros((len(paths), 1), np.int64), names)


def test_groups(tmp_path: Path) -> None:
    clips = table("/v/run/person1_a.mp4", "/v/run/person2_a.mp4", "/v/walk/person1_b.mp4")
    assert groups_of(r"person(\d+)", clips, ["run"]) == ["1", "2", "1"]
    assert groups_of("none", clips, ["run"]) == clips.paths.tolist()
    file = tmp_path / "groups.csv"
    file.write_text("path,group\n" + "".join(f"{path},{i % 2}\n" for i, path in enumerate(clips.paths)))
    assert groups_of(str(file), clips, ["run"]) == ["0", "1", "0"]


def listed_clips(root: Path, *rows: str) -> ClipTable:
    """The training clips of a table whose videos exist."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (root / name).touch()
    (root / "train.csv").write_text("path,label,person\n" + "".join(f"{row}\n" for row in rows))
    return read_csv(root, train="train.csv", val="train.csv").train


def test_groups_of_a_column(tmp_path: Path) -> None:
    clips = listed_clips(tmp_path, "b.mp4,run,ann", "a.mp4,walk,bob", "c.mp4,run,ann")
    groups = groups_of("column:person", clips, ["run", "walk"])
    assert dict(zip(clips.ids.tolist(), groups, strict=True)) == {"a.mp4": "bob", "b.mp4": "ann", "c.mp4": "ann"}
    part = clips.select(np.flatnonzero(clips.ids == "a.mp4"))
    assert groups_of("column:person", joined([part, part]), ["run", "walk"]) == ["bob"]


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("actor", ["a.mp4,run,ann", "b.mp4,walk,bob"], "has no column 'actor': it has path, label, person"),
        ("person", ["a.mp4,run,ann", "b.mp4,walk,"], "train.csv:3: b.mp4, no person"),
        ("person", ["a.mp4,run,ann", "b.mp4,walk,bob", "a.mp4,run,eve"], "train.csv:4: a.mp4, person eve and ann"),
    ],
)
def test_columns_that_do_not_tell_the_group(column: str, rows: list[str], message: str, tmp_path: Path) -> None:
    clips = listed_clips(tmp_path, *rows)
    with pytest.raises(UserError) as error:
        groups_of(f"column:{column}", clips, ["run", "walk"])
    assert message in str(error.value)


def test_only_tables_have_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a.mp4 run\nb.mp4 walk\n")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    bare = read_csv(tmp_path, train="train.csv", val="train.csv").train
    with pytest.raises(UserError, match="its first line does not name the columns, as in path,label,person"):
        groups_of("column:person", bare, ["run", "walk"])
    with pytest.raises(UserError, match="the clips come from no table: data=csv reads one"):
        groups_of("column:person", table("/v/a.mp4"), ["run"])


@pytest.mark.parametrize(
    ("more", "count", "expected"),
    [
        (["recipe=folder", "train=auto", "data.flip=0"], 1000, ["data.flip=0", "recipe=few_clips"]),
        pytest.param(
            [],
            1001,
            ["data.frames=4", "data.stride=2", "data.short_side=36", "data.crop=32", "train=all"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_with_few_clips_the_runs_train_a_head_as_train_does(
    more: list[str], count: int, expected: list[str], config: Config, tmp_path: Path
) -> None:
    save_image_vit(tmp_path / "x.pth")
    words = ["data=folder", "data.root=videos", f"init.path={tmp_path / 'x.pth'}", *more]
    assert training_words(config(*words), words, count)[1:] == expected


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("actor(", "neither a file nor a regular expression"),
        ("actor", "the expression needs a group"),
        (r"(person1)", "gives 1 clip no group: /v/run/person2_a.mp4"),
    ],
)
def test_groups_that_are_none(how: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        groups_of(how, table("/v/run/person1_a.mp4", "/v/run/person2_a.mp4"), ["run"])
    assert message in str(error.value)


def test_a_clip_of_two_splits_counts_once() -> None:
    assert joined([table("/a.mp4", "/b.mp4"), table("/b.mp4", "/c.mp4")]).paths.tolist() == [
        "/a.mp4",
        "/b.mp4",
        "/c.mp4",
    ]


def save_image_vit(file: Path) -> None:
    import timm
    import torch

    sizes = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    torch.save(timm.create_model("vit_tiny_patch16_224", **sizes).state_dict(), file)


def listed(file: Path) -> set[str]:
    return {row[0] for row in csv.reader(file.open())}


def test_what_cannot_be_divided_is_refused(config: Config, videos: Path, tmp_path: Path) -> None:
    cfg = config("data=folder", f"data.root={videos}")
    with pytest.raises(UserError, match="--folds 99: must be between 2 and the 32 groups"):
        crossval(cfg, tmp_path / "out", [], Choices(99, "none"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(UserError, match="out exists and holds no cross-validation: choose another --out"):
        crossval(cfg, tmp_path / "out", [], Choices(2, "none"))


def test_a_probe_has_no_epochs_and_no_checkpoints_to_choose_from(videos: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs=3 has no effect here"):
        command.crossval([str(videos), "init=imagenet", "trainer.max_epochs=3"], probe=True)
    with pytest.raises(UserError, match="--val-percent: a probe has no checkpoints"):
        command.crossval(["videos"], probe=True, val_percent=20.0)


@pytest.mark.slow
def test_folds_are_disjoint_and_the_command_goes_on(videos: Path, tmp_path: Path) -> None:
    tiny = [word for word in TINY if not word.startswith("trainer.acc")]
    words = [str(videos), "--folds", "2", "--seeds", "2", "--out", "out", *tiny, "trainer=cpu"]
    done = run_python("-m", "vivit_train.tools.cli", "crossval", *words, folder=tmp_path, timeout_s=900)
    assert done.returncode == 0, done.stderr
    assert "top-1 0." in done.stdout.splitlines()[-1]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["n"], summary["folds"], len(summary["top1_by_seed"])) == (32, 2, 2)
    low, high = summary["interval_95"]
    assert 0 <= low <= summary["top1"] <= high <= 1
    tests = []
    for fold in (1, 2):
        train, val, test = (listed(tmp_path / f"out/fold_{fold}/lists/{s}.csv") for s in ("train", "val", "test"))
        assert not train & val
        assert not {Path(p).name for p in train | val} & {Path(p).name for p in test}, "a group is on both sides"
        tests.append(test)
    assert not tests[0] & tests[1]
    assert len(tests[0] | tests[1]) == 32

    kept = (tmp_path / "out/fold_1/seed_0/metrics.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out/fold_2/seed_1")
    again = run_python("-m", "vivit_train.tools.cli", "crossval", *words, folder=tmp_path, timeout_s=900)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert (tmp_path / "out/fold_1/seed_0/metrics.json").stat().st_mtime_ns == kept
    other = run_python(
        "-m", "vivit_train.tools.cli", "crossval", *words, "optimizer.lr=1", folder=tmp_path, timeout_s=900
    )
    assert other.returncode == 1
    assert "out holds a cross-validation with other settings or clips" in other.stderr


@pytest.mark.slow
def test_runs_that_fail_are_named(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos, tmp_path / "videos")
    for file in tmp_path.glob("videos/*/*/0000.mp4"):
        file.write_text("this is text")
    words = ["videos", "--folds", "2", "--group", "none", "--out", "out", *TINY[:-1], "trainer=cpu"]
    refused = run_python(
        "-m", "vivit_train.tools.cli", "crossval", *words, "data.flip=3", folder=tmp_path, timeout_s=900
    )
    assert "data.flip=3: must be between 0 and 1" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = run_python("-m", "vivit_train.tools.cli", "crossval", *words, folder=tmp_path, timeout_s=900)
    assert done.returncode == 1
    assert "2 of 2 runs failed, the first is fold 1, seed 0: failed: " in done.stderr
    assert len((tmp_path / "out/runs.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_probes_of_all_folds_share_the_features(videos: Path, tmp_path: Path) -> None:
    net = create_model("vivit_fe", "Ti", num_classes=8, **TINY_NET)  # type: ignore[arg-type]
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    tiny = [word for word in TINY_PROBE if not word.startswith("model.tubelet")]
    options = ["--probe", "--folds", "2", "--group", "none", "--out", "out"]
    words = [str(videos), *options, "init.path=weights.pt", *tiny]
    done = run_python("-m", "vivit_train.tools.cli", "crossval", *words, folder=tmp_path, timeout_s=900)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["n"], summary["folds"]) == (32, 2)
    train, val = (listed(tmp_path / f"out/fold_1/lists/{split}.csv") for split in ("train", "val"))
    assert len(train | val) == len(train) + len(val) == 32
    (store,) = (tmp_path / "features/csv").iterdir()
    kept = {file: file.stat().st_mtime_ns for file in store.glob("*.safetensors")}
    assert kept
    shutil.rmtree(tmp_path / "out/fold_2/seed_0/checkpoints")
    (tmp_path / "out/fold_2/seed_0/metrics.json").unlink()
    again = run_python("-m", "vivit_train.tools.cli", "crossval", *words, folder=tmp_path, timeout_s=900)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert {file: file.stat().st_mtime_ns for file in store.glob("*.safetensors")} == kept
