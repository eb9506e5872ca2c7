"""Tiny copies of the published data sets, in their real layouts, and what the tests of the readers share."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import pytest

from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.utils.errors import UserError


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def rows(manifest: ClipTable) -> list[tuple[str, int]]:
    return list(zip(manifest.ids.tolist(), manifest.labels[:, 0].tolist(), strict=True))


def error(read: Callable[[], Splits]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


def has(text: str, *parts: str) -> bool:
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in:\n{text}"
    return True


def make_tree(dataset: str, root: Path, clips: Sequence[Path]) -> None:
    """Makes the data set `dataset` below `root`, in the layout that its archives leave, from the videos `clips`.

    Three classes with two videos in each of training and validation (and Something-Something's test); for EPIC
    two videos with twelve segments within their first second. Videos keep the endings of `clips`.
    """
    supply = cycle(clips)

    def put(path: str) -> None:
        clip, target = next(supply), root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, target.with_name(target.name + clip.suffix))

    TREES[dataset](root, put)


Put = Callable[[str], None]  # a video to a path below root, without its ending


def kinetics(root: Path, put: Put) -> None:
    labels = ["air drumming", "passing American football (in game)", "zumba"]
    for split, first in (("train", 0), ("val", 10)):
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for i, label in enumerate(sorted(labels * 2)):
            youtube_id, start = f"-_{split:_>5}{first + i:04d}", 7 * i
            put(f"{split}/{label}/{youtube_id}_{start:06d}_{start + 10:06d}")
            lines.append(f"{label},{youtube_id},{start},{start + 10},{split},0")
        write(root / "annotations" / f"{split}.csv", *lines)


def moments(root: Path, put: Put) -> None:
    labels = ["clapping", "playing+fun", "boarding"]
    write(root / "moments_categories.txt", *(f"{label},{i}" for i, label in enumerate(labels)))
    for name, side in (("trainingSet.csv", "training"), ("validationSet.csv", "validation")):
        paths = [f"{label}/yt-{side[0]}{i}_{label}_12" for label in labels for i in range(2)]
        for path in paths:
            put(f"{side}/{path}")
        write(root / name, *(f"{path}.mp4,{path.split('/')[0]},3,1" for path in paths))


TEMPLATES = [
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
    "[Something] falling like a feather or paper",
]


def something(root: Path, put: Put, folder: str = "labels/", prefix: str = "") -> None:
    start = f"{root}/{folder}{prefix}"
    labels = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(TEMPLATES)}
    write(Path(f"{start}labels.json"), json.dumps(labels, indent=1))
    for first, split in ((0, "train"), (100, "validation"), (200, "test")):
        entries = [(str(first + i), template) for i, template in enumerate(TEMPLATES * 2)]
        for video_id, _ in entries:
            put(f"20bn-something-something-v2/{video_id}")
        if split == "test":
            write(Path(f"{start}test.json"), json.dumps([{"id": video_id} for video_id, _ in entries]))
            answers = [template.replace("[", "").replace("]", "") for _, template in entries]
            write(
                Path(f"{start}test-answers.csv"),
                *(f"{i};{answer}" for (i, _), answer in zip(entries, answers, strict=True)),
            )
        else:
            published = [
                {"id": i, "label": "pushing a box", "template": template, "placeholders": ["a box"]}
                for i, template in entries
            ]
            lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in published)
            write(Path(f"{start}{split}.json"), "[", *lines.split("\n"), "]")


def something_by_name(root: Path, put: Put) -> None:
    something(root, put, folder="", prefix="something-something-v2-")


EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def epic(root: Path, put: Put) -> None:
    classes = "id,key,instances,category"
    folder = root / "epic-kitchens-100-annotations"
    write(
        folder / "EPIC_100_verb_classes.csv",
        classes,
        "0,take,\"['take', 'pick-up']\",retrieve",
        "1,put,\"['put']\",leave",
    )
    nouns = [
        "0,tap,\"['tap', 'tap:water']\",appliances",
        "1,spoon,\"['spoon']\",cutlery",
        "2,plate,['plate'],crockery",
    ]
    write(folder / "EPIC_100_noun_classes.csv", classes, *nouns)
    for split, video in (("train", "P01_101"), ("validation", "P02_03")):
        put(f"{video[:3]}/videos/{video}")
        lines = [EPIC_HEADER]
        for i in range(12):
            start, stop = f"00:00:00.{4 * i:02d}", f"00:00:00.{4 * i + 45:02d}"
            verb, noun = i % 2, i % 3
            lines.append(
                f"{video}_{i},{video[:3]},{video},00:00:00.100,{start},{stop},1,30,"
                f'"take, or put",take,{verb},tap,{noun},"[\'tap\', \'x\']","[{noun}, 1]"'
            )
        write(folder / f"EPIC_100_{split}.csv", *lines)


def ucf101(root: Path, put: Put) -> None:
    labels = ["ApplyEyeMakeup", "HammerThrow", "Hammering"]
    write(root / "ucfTrainTestlist/classInd.txt", *(f"{i} {label}" for i, label in enumerate(labels, 1)))
    for fold in (1, 2, 3):
        for name, groups in (("train", (8, 9)), ("test", (1, 2))):
            paths = {
                f"{label}/v_{label}_g{g + fold:02d}_c01": i for i, label in enumerate(labels, 1) for g in groups
            }
            for path in paths:
                put(f"UCF-101/{path}")
            lines = [f"{path}.avi {i}" if name == "train" else f"{path}.avi" for path, i in paths.items()]
            write(root / f"ucfTrainTestlist/{name}list{fold:02d}.txt", *lines)


def hmdb51(root: Path, put: Put) -> None:
    for label in ("draw_sword", "sword", "clap"):
        names = [f"#20_Rhythm_&_(fun)_{label}_u_nm_np1_fr_goo_{i}" for i in range(5)]
        for name in names:
            put(f"hmdb51_org/{label}/{name}")
        for fold in (1, 2, 3):
            marks = [(i + fold) % 5 for i in range(5)]  # 1, 1, 2, 2 and 0, turned
            lines = [f"{name}.avi {'11220'[mark]} " for name, mark in zip(names, marks, strict=True)]
            write(root / f"testTrainMulti_7030_splits/{label}_test_split{fold}.txt", *lines)


TREES: dict[str, Callable[[Path, Put], None]] = {
    "kinetics400": kinetics,
    "kinetics600": kinetics,
    "kinetics700": kinetics,
    "moments_in_time": moments,
    "something_something_v2": something,
    "epic_kitchens100": epic,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}
