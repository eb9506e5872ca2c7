"""Hostile command lines of eval.py and the tools, in real processes: one message each, and nothing is replaced."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from checkpoints import checkpoint
from forked import run_python
from helpers import ROOT
from test_wrong_words import FOREIGN

from vivit_train.data.synthetic import CLASSES

pytestmark = pytest.mark.slow
READER = "vivit_train.data.annotations.folder.read_folder"
VIDEO = "videos/test/move_left/0000.mp4"
# What is typed in the folder below, and a part of what is said.
WRONG = {
    "eval.py ckpt_path=nobest": "the folder has no best.ckpt",
    "eval.py ckpt_path=none.ckpt": "ckpt_path=none.ckpt: no such file",
    "eval.py ckpt_path=text.ckpt": "text.ckpt cannot be read as a checkpoint: it is damaged or not a checkpoint",
    "eval.py ckpt_path=list.csv": "list.csv cannot be read as a checkpoint: it is damaged or not a checkpoint",
    "eval.py ckpt_path=run data=folder data=csv": "data is set to folder and to csv: leave out one of them",
    "eval.py ckpt_path=run hydra.run.dir=run overwrite=true": "would move run aside, but ckpt_path=run is in it",
    "eval.py ckpt_path=run hydra.run.dir=text.mp4": "text.mp4: a file is where a folder is needed",
    "eval.py ckpt_path=run trusted=[nosuchpackage]": "trusted: there is no package nosuchpackage",
    "eval.py ckpt_path=run optimizer.lr=1": "optimizer.lr has no effect here, only for vivit train",
    "eval.py ckpt_path=run recipe=folder": "recipe has no effect here, only for vivit train",
    "train.py eval.split=val": "eval.split has no effect here, only for vivit eval",
    "eval.py ckpt_path=run data.crop=48": "data.crop=48 is larger than data.short_side=36",
    "eval.py ckpt_path=run data.train=x.csv": "data.train=x.csv has no effect",
    "eval.py ckpt_path=run data.val=x.csv": "cannot be read with data.val=x.csv",
    "eval.py ckpt_path=run hydra.job.name=[1]": "hydra.job.name=[1]: this key takes a value of another type",
    "eval.py ckpt_path=run ''": "one of the words is empty",
    "vivit predict '' videos": "one of the words is empty",
    "vivit predict run videos --views 99999999x3": "--views 99999999x3: must be up to 999 temporal clips",
    "vivit predict run videos --json run/checkpoints/best.ckpt --overwrite": "the command reads this file",
    f"vivit predict run {VIDEO} --json {VIDEO} --overwrite": "0000.mp4: the command reads this file",
    "vivit predict run videos --overwrite": "--overwrite has no effect without --json, --csv",
    "vivit predict run videos --csv text.mp4/x.csv": "text.mp4: a file is where a folder is needed",
    "vivit predict run videos --timeline --out text.mp4": "text.mp4: a file is where a folder is needed",
    "vivit predict run videos --timeline --window 1e30": "--window 1e30: must be a number between 0.01 and 86400",
    "vivit predict run videos --trusted nosuchpackage": "trusted: there is no package nosuchpackage",
    "vivit features run videos --level video": "--level video: must be one of clip, frame, token",
    "vivit features good.ckpt videos --out good.ckpt --overwrite": "the command reads this file",
    "vivit search text.mp4 x.mp4": "text.mp4 is not a file of features, or is damaged",
    "vivit search text.mp4 x.mp4 --out holds": "holds is a folder: set --out to a file",
    "vivit export run --format onnx": "vivit export: --out is missing; vivit export --help",
    "vivit probe videos init.path=good.ckpt optimizer.lr=1": "optimizer.lr=1 has no effect here",
    "vivit probe videos init.path=good.ckpt --out text.mp4": "--out text.mp4: a file is where a folder is needed",
    "vivit crossval videos seed=3": "seed=3 has no effect here: --seeds N trains with the seeds 0 to N - 1",
    "vivit crossval videos resume=auto": "resume=auto has no effect here",
    "vivit crossval videos --group '('": "neither a file nor a regular expression that is complete",
    "vivit compare nobest holds": "nobest/metrics.json cannot be read: there is no such file; name the folder",
    "vivit doctor videos --out holds": "holds exists and holds no report of vivit doctor",
    "vivit doctor videos trainer.max_epochs=3": "trainer.max_epochs=3 has no effect here",
    "vivit doctor videos data.root=other": "data.root is set to 'videos' and to other",
    "vivit prepare videos/test holds": "videos that vivit prepare has not made (1)",
    "vivit bench loader videos --workers 9999999": "--workers 9999999: must be numbers up to 512",
    "vivit bench model --json good.ckpt": "--json good.ckpt exists: choose another file",
    "vivit replay text.mp4 --out good.ckpt": "--out good.ckpt exists: choose another file",
}


@pytest.fixture(scope="module")
def folder(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, a checkpoint alone and in the folder of a run, and what is none of these."""
    folder = tmp_path_factory.mktemp("typed")
    shutil.copytree(videos, folder / "videos")
    data = {"_target_": "vivit_train.data.datamodule.VideoDataModule", "reader": {"_target_": READER}}
    (folder / "run/checkpoints").mkdir(parents=True)
    checkpoint(folder / "good.ckpt", {"": list(CLASSES)}, root=str(videos), **data)
    shutil.copy(folder / "good.ckpt", folder / "run/checkpoints/best.ckpt")
    for name in ("nobest/checkpoints", "holds/move_left"):
        (folder / name).mkdir(parents=True)
    for name in ("text.ckpt", "text.mp4", "list.csv", "holds/move_left/0000.mp4"):
        (folder / name).write_text("(I am text)")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_each_is_one_message_and_nothing_is_replaced(folder: Path) -> None:
    before = files_of(folder)
    environment = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    wrong = {}
    for typed, message in WRONG.items():
        program, *words = shlex.split(typed)
        start = ["-m", "vivit_train.tools.cli"] if program == "vivit" else [str(ROOT / program)]
        done = run_python(*start, *words, folder=folder, env=environment, timeout_s=60)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        if done.returncode not in (1, 2) or len(lines) != 1 or message not in done.stderr:
            wrong[typed] = (done.returncode, done.stderr[-600:])
        elif FOREIGN.search(done.stderr.replace("tensors and plain data", "")):
            wrong[typed] = ("a library's words", done.stderr[-600:])
        changed = [name for name, content in before.items() if Path(name).read_bytes() != content]
        assert not changed, typed
    assert wrong == {}
