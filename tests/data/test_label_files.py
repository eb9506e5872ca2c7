"""Label files as other tools write them, read by data=csv."""

import unicodedata
from pathlib import Path

import pytest
from trees import error, has, rows, touch, write

from vivit_train.data.annotations import files
from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.table import Splits
from vivit_train.utils.errors import VideoError

NAMES = [("clips/a.mp4", "run"), ("clips/b.mp4", "walk"), ("clips/c.mp4", "run"), ("clips/d.mp4", "walk")]
EXPECTED = [("clips/a.mp4", 0), ("clips/b.mp4", 1), ("clips/c.mp4", 0), ("clips/d.mp4", 1)]


def read(root: Path, *lines: str, ending: str = "\n", **options: object) -> Splits:
    touch(root, *(path for path, _ in NAMES))
    for name in ("train.csv", "val.csv"):
        (root / name).write_bytes("".join(f"{line}{ending}" for line in lines).encode())
    return read_csv(root, train="train.csv", val="val.csv", **options)  # type: ignore[arg-type]


FORMS = {
    "pandas": (",path,label", "{i},{path},{label}"),
    "pandas without a header": (None, "{i},{path},{label}"),
    "unnamed": ("Unnamed: 0,video_path,label", "{i},{path},{label}"),
    "label first": ("label,path", "{label},{path}"),
    "label first without a header": (None, "{label},{path}"),
    "label first, tabs": (None, "{label}\t{path}"),
    "label first, spaces": (None, "{label} {path}"),
    "semicolons": (None, "{path};{label}"),
    "semicolons with a header": ("Video Path;Class", "{path};{label}"),
    "quotes and semicolons": ('"file";"class"', '"{path}";"{label}"'),
    "tabs": ("filename\tlabel", "{path}\t{label}"),
    "bars without a header": (None, "{path} | {label}"),
    "bars": ("path | label", "{path} | {label}"),
    "more columns": ("id,video,start,fps,class_name,split", "x{i},{path},0,25,{label},train"),
    "votes": (None, "{path},{label},3,1"),
    "quotes": ('"","video","label"', '"{i}","{path}","{label}"'),
    "two columns with a header": ("video_path,label", "{path},{label}"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_tables_of_other_tools(tmp_path: Path, form: str, ids: bool, ending: str) -> None:
    header, row = FORMS[form]
    if ids and form == "votes":
        pytest.skip("three columns of numbers: test_numbers_that_may_be_the_label")
    numbers = {"run": "0", "walk": "1"}
    lines = [row.format(i=i, path=p, label=numbers[n] if ids else n) for i, (p, n) in enumerate(NAMES)]
    bom = ["\ufeff" + header] if header else []
    splits = read(tmp_path, *bom, *lines, ending=ending)
    assert rows(splits.train) == EXPECTED
    assert splits.classes[""] == (("0", "1") if ids else ("run", "walk"))
    assert has(splits.summary(), "read as  ", "ids from 0" if ids else "labels are names")


def test_what_was_decided_is_one_line_of_the_summary(tmp_path: Path) -> None:
    splits = read(tmp_path, ";video_path;label", *(f"{i};{p};{n}" for i, (p, n) in enumerate(NAMES)))
    line = "path in column 'video_path', label in column 'label', separator semicolon, a header; labels are names"
    assert f"\nread as  {line}\n" in splits.summary()
    splits = read(tmp_path, *(f"{n},{p}" for p, n in NAMES))
    assert "\nread as  path in column 2 of 2, label in column 1 of 2, separator comma; labels" in splits.summary()


def test_frame_folders_of_mmaction(tmp_path: Path) -> None:
    touch(tmp_path, *(f"frames/{name}/img_{i:05d}.jpg" for name in "abcd" for i in range(2)))
    splits = read(tmp_path, "frames/a 120 0", "frames/b 87 1", "frames/c 64 0", "frames/d 64 1")
    assert rows(splits.train) == [("frames/a", 0), ("frames/b", 1), ("frames/c", 0), ("frames/d", 1)]
    assert "label in column 3 of 3, separator space" in splits.summary()


def test_numbers_that_may_be_the_label(tmp_path: Path) -> None:
    text = error(lambda: read(tmp_path, "clips/a.mp4,0,17", "clips/b.mp4,1,30"))
    assert has(
        text, "train.csv: which column is the label? There are column 2 (0, 1), column 3 (17, 30)", "path,label"
    )


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (
            ["path,start,end,label", "clips/a.mp4,0,2,run", "clips/b.mp4,1,3,walk"],
            ["the column 'end' ends a part"],
        ),
        (["clips/a.mp4 0 30 run", "clips/b.mp4 15 60 walk"], ["which column is the label?"]),
        (["clips/a.mp4,0,30,run", "clips/b.mp4,15,60,walk"], ["which column is the label?"]),
        (
            ["path,label,split", "clips/a.mp4,run,train", "clips/b.mp4,walk,val"],
            ["the column 'split' has train, val", "data.val="],
        ),
        (['{"path": "clips/a.mp4", "label": "run"}'], ["looks like JSON", "data=labelstudio"]),
        (["clips/a run", "clips/b walk"], ["or by an extension", "(there is 'a.mp4')"]),
    ],
)
def test_what_a_list_cannot_say_is_refused(tmp_path: Path, lines: list[str], parts: list[str]) -> None:
    assert has(error(lambda: read(tmp_path, *lines)), *parts)


def test_a_missing_label_of_pandas_is_pointed_out(tmp_path: Path) -> None:
    assert "is nan a class?" in read(tmp_path, "clips/a.mp4,nan", "clips/b.mp4,run").summary()


def test_paths_of_windows(tmp_path: Path) -> None:
    splits = read(tmp_path, *(f"{path},{name}".replace("/", "\\") for path, name in NAMES))
    assert rows(splits.train) == EXPECTED
    assert r"\ in paths is /" in splits.summary()
    text = error(lambda: read(tmp_path, *(f"C:\\data\\{path},{name}".replace("/", "\\") for path, name in NAMES)))
    assert has(text, "too many missing", "drive of Windows", "relative to data.root")


def test_ids_with_a_point(tmp_path: Path) -> None:
    splits = read(tmp_path, "path,label", *(f"{path},{i % 2}.0" for i, (path, _) in enumerate(NAMES)))
    assert (rows(splits.train), splits.classes[""]) == (EXPECTED, ("0", "1"))


def test_ids_from_1(tmp_path: Path) -> None:
    lines = [f"{path} {1 + i % 2}" for i, (path, _) in enumerate(NAMES)]
    assert has(error(lambda: read(tmp_path, *lines)), "start at 1 and not at 0", "data.reader.first_id=1")
    splits = read(tmp_path, *lines, first_id=1)
    assert (rows(splits.train), splits.classes[""]) == (EXPECTED, ("1", "2"))
    assert "ids from 1" in splits.summary()
    write(tmp_path / "classes.txt", "run", "walk")
    assert read(tmp_path, *lines, first_id=1).classes[""] == ("run", "walk")
    assert has(
        error(lambda: read(tmp_path, *lines)), "unknown label '2'", "ids from 0 to 1", "data.reader.first_id=1"
    )
    text = error(lambda: read(tmp_path, *lines, f"{NAMES[0][0]} 0", first_id=1))
    assert has(text, "unknown label '0'", "ids from 1 to 2")


def test_comments(tmp_path: Path) -> None:
    lines = [f"{path} {name}" for path, name in NAMES]
    splits = read(
        tmp_path, "# made by hand", lines[0] + " # ok", "#", *lines[1:3], "", lines[3] + "\t# check again"
    )
    assert (rows(splits.train), splits.classes[""]) == (EXPECTED, ("run", "walk"))
    assert ", 2 comments; labels are names" in splits.read_as
    touch(tmp_path, "#1 # take.mp4")
    assert rows(read(tmp_path, "#1 # take.mp4 run", *lines[1:]).train)[0] == ("#1 # take.mp4", 0)


def test_a_list_of_kinetics(tmp_path: Path) -> None:
    touch(tmp_path, *(f"videos/{name}/{name}{'x' * 8}_000001_000011.mp4" for name in ("run", "jog")))
    lines = [f"{name},{name}{'x' * 8},1,11,train" for name in ("run", "jog")]
    splits = read(tmp_path, "label,youtube_id,time_start,time_end,split", *lines)
    assert splits.classes[""] == ("jog", "run")
    assert splits.source.startswith("kinetics ")


def test_names_are_compared_in_composed_form(tmp_path: Path) -> None:
    composed, split_up = "é", unicodedata.normalize("NFD", "é")
    touch(tmp_path, f"{split_up}/{split_up}.mp4", "b.mp4")
    write(tmp_path / "classes.txt", composed, "run")
    splits = read(tmp_path, f"{composed}/{composed}.mp4,{split_up}", "b.mp4,run")
    assert splits.train.paths[0] == str(tmp_path / split_up / f"{split_up}.mp4")
    assert splits.train.labels[:, 0].tolist() == [0, 1]


def test_files_that_differ_only_in_case_or_blanks_are_pointed_out(tmp_path: Path) -> None:
    text = error(lambda: read(tmp_path, "clips/A.MP4 run", "clips/b.mp4 walk"))
    assert has(text, "only in case or blanks", "clips/A.MP4 (there is 'a.mp4')")


def test_a_folder_that_may_not_be_entered_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listing(folder: str) -> frozenset[str]:
        raise VideoError(folder, "Permission denied")

    monkeypatch.setattr(files, "listing", listing)
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    assert has(
        error(lambda: read(tmp_path, "clips/a.mp4 run", "clips/b.mp4 walk")), "clips: Permission denied", "chmod"
    )
