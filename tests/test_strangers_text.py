"""Text files of strangers that no parser expects end in an error for people."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
import torch
from helpers import Happened
from trees import make_tree

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.epic import read_epic
from vivit_train.data.annotations.files import read_classes
from vivit_train.data.annotations.kinetics import read_kinetics
from vivit_train.data.annotations.something import read_something
from vivit_train.models.weights.files import read_file, video_statistics
from vivit_train.models.weights.flax_file import read_parameters
from vivit_train.tools.sweep import Outcome, read_outcome, write_summary
from vivit_train.utils.errors import UserError

DEEP, DIGITS, LONG = "[" * 100_000 + "]" * 100_000, "9" * 5001, "x" * 200_000


def dataset(root: Path, name: str) -> Path:
    (root / "clip.mp4").touch()
    make_tree(name, root / "data", [root / "clip.mp4"])
    return root / "data"


def something(root: Path, text: str) -> None:
    (dataset(root, "something_something_v2") / "labels/validation.json").write_text(text)
    read_something(root / "data")


def kinetics(root: Path, row: str) -> None:
    data = dataset(root, "kinetics400")
    with next(data.rglob("val.csv")).open("a") as file:
        file.write(row)
    read_kinetics(data)


def epic(root: Path, start: str) -> None:
    file = next(dataset(root, "epic_kitchens100").rglob("EPIC_100_validation.csv"))
    file.write_text(file.read_text().replace("00:00:00", start))
    read_epic(root / "data")


def own(root: Path, text: str) -> None:
    for name in ("a.mp4", "b.mp4"):
        (root / name).touch()
    (root / "train.csv").write_text(text)
    read_csv(root, train="train.csv", val="train.csv")


def classes(root: Path, text: str) -> None:
    (root / "classes.csv").write_text(text)
    read_classes(root / "classes.csv")


def outcome(root: Path, text: str) -> None:
    (root / "outcome.json").write_text(text)
    read_outcome(root / "outcome.json")


def statistics(root: Path, text: str) -> None:
    (root / "preprocessor_config.json").write_text(text)
    video_statistics(root)


def flax(root: Path, name: str) -> None:
    array = msgpack.ExtType(1, msgpack.packb(([1], "float32", bytes(4))))
    (root / "file").write_bytes(msgpack.packb({"params": {"Dense_" + name: {"a": array}}}))
    assert read_parameters(root / "file")
    raise UserError("read: the name is only a name")


def weights(root: Path, version: str) -> None:
    torch.save({"a": torch.ones(2)}, file := io.BytesIO())
    (root / "file").write_bytes(
        file.getvalue().replace(b"PK\x01\x02\0\0\0\0", b"PK\x01\x02\0\0" + version.encode())
    )
    read_file(root / "file")


def named(root: Path, name: str) -> None:
    torch.save({"a": torch.ones(2)}, file := io.BytesIO())
    data = bytearray(file.getvalue())
    at = data.find(b"PK\x01\x02")
    data[at + 8 : at + 10], data[at + 46 : at + 47] = (2048).to_bytes(2, "little"), b"\xff"  # "UTF-8", and is none
    (root / "file").write_bytes(data)
    read_file(root / "file")


KINDS = json.dumps({"job": "x", "overrides": 7, "score": "y", "failed": 3, "note": None})
CASES: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "annotations in JSON, 100,000 lists in each other": (something, DEEP),
    "annotations in JSON, an integer of 5,001 digits": (something, DIGITS),
    "annotations in CSV, a cell of 200,000 characters": (kinetics, f"{LONG},b,1,2\n"),
    "annotations in CSV, a time of 5,001 digits": (kinetics, f"a,b,{DIGITS},2,val,0\n"),
    "annotations of EPIC, hours of 5,001 digits": (epic, f"{DIGITS}:00:00"),
    "annotations of path label, a label of 5,001 digits": (own, f"a.mp4 {DIGITS}\nb.mp4 1\n"),
    "a class file, a cell of 200,000 characters": (classes, f"id,key,x\n0,{LONG},x\n"),
    "outcome.json, 100,000 lists in each other": (outcome, DEEP),
    "outcome.json, a list": (outcome, "[1]"),
    "outcome.json, an integer of 5,001 digits": (outcome, DIGITS),
    "outcome.json, values of other kinds": (outcome, KINDS),
    "preprocessor_config.json, 100,000 lists in each other": (statistics, DEEP),
    "preprocessor_config.json, 70 MB": (statistics, " " * 70_000_000 + "{}"),
    "a flax file, a module numbered with 5,001 digits": (flax, DIGITS),
    "PyTorch weights, a zip of a later version": (weights, "cc"),
    "PyTorch weights, a name in the zip that is no UTF-8": (named, ""),
}


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("case", CASES)
def test_absurd_text_ends_in_an_error_for_people(case: str, tmp_path: Path, happened: Happened) -> None:
    read, text = CASES[case]
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert len(str(caught.value)) < 3000
    happened(case, str(caught.value)[:160])


@pytest.mark.fault("Strangers' files")
def test_an_outcome_of_another_kind_costs_no_other_job_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], happened: Happened
) -> None:
    for job in ("0", "1", "foreign"):
        (tmp_path / job).mkdir()
    for number in (0, 1):
        Outcome(number, [f"seed={number}"], 0.5, failed=False, note="").write(tmp_path / str(number))
    (tmp_path / "foreign/outcome.json").write_text("[1]")
    assert [job.job for job in write_summary(tmp_path)] == [0, 1]
    said = capsys.readouterr().out
    assert "foreign/outcome.json is not the outcome of a run" in said
    happened("A foreign outcome.json in a sweep's folder", said)
