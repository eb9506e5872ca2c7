"""The commands of docs/tutorial.md, and the code of docs/python.md, as real processes on the tests' videos."""

import re
from pathlib import Path

import pytest
from doc_commands import commands_of
from forked import run_python
from helpers import ROOT, TINY

ELSEWHERE = ("probe", "crossval")  # test_probe.py and test_crossval.py run these


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run_in_their_order(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to(videos)
    clip = str(next(videos.glob("test/*/*.mp4")))
    written = {
        "doctor": "doctor/folder/report.html",
        "prepare": "small/manifest.csv",
        "train": "runs/mine/report.html",
        "eval": "evaluated/metrics.json",
        "predict": "",
        "explain": "explain/index.html",
        "export": "exported/example.py",
    }
    commands = commands_of(ROOT / "docs/tutorial.md")
    shown = [command.words[1:] for command in commands if command.words[0] == "vivit"]
    assert {*written, *ELSEWHERE} == {name for name, *_ in shown}
    for name, *words in shown:
        if name in ELSEWHERE:
            continue
        words = [clip if re.search(r"\.(avi|mp4)$", word) else word for word in words if word != "init=imagenet"]
        words += [word for word in TINY if word != "eval.report=false"] if name == "train" else []
        words += ["hydra.run.dir=evaluated"] if name == "eval" else []
        done = run_python("-m", "vivit_train.tools.cli", name, *words, folder=tmp_path)
        assert done.returncode == 0, (name, words, done.stdout + done.stderr)
        assert (tmp_path / written[name]).exists(), name


@pytest.mark.slow
def test_the_code_of_the_python_page_runs(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to(videos)
    (tmp_path / "video.mp4").symlink_to(next(videos.glob("test/*/*.mp4")))
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    predict, train = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    start, tiny = '"init=imagenet"', ", ".join(map(repr, TINY))
    assert start in train
    (tmp_path / "page.py").write_text(f"import vivit_train\n{train.replace(start, tiny)}\n{predict}")
    done = run_python("page.py", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/mine/4x3/predictions.csv").exists()
    *_, first, second, third = done.stdout.splitlines()
    assert all(re.fullmatch(r"\w+ 0\.\d+", line) for line in (first, second, third)), done.stdout
