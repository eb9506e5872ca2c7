"""A run folder is never overwritten, a finished run is not trained again, and errors are one message."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, Happened, run_script

from vivit_train.run import evaluate, train
from vivit_train.utils.errors import UserError


def words(videos: Path, run: str = "run", *more: str) -> list[str]:
    return [*TINY, "data=folder", f"data.root={videos}", f"hydra.run.dir={run}", *more]


def files(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    folder = tmp_path_factory.mktemp("user")
    done = run_script("train.py", *words(videos), folder=folder)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_the_log_file_holds_the_story_of_the_run(trained: Path) -> None:
    printed, log = (trained / "stdout.txt").read_text(), (trained / "run/train.log").read_text()
    assert len(printed.splitlines()) > 10
    for line in filter(None, printed.splitlines()):
        assert line in log, f"the log lacks {line!r}"
    assert "\x1b" not in printed, "colors are for terminals"


@pytest.mark.fault("Disks and checkpoints")
def test_a_second_run_in_the_same_folder_is_refused(trained: Path, videos: Path, happened: Happened) -> None:
    before = files(trained / "run")
    done = run_script("train.py", *words(videos, "run", "seed=1"), folder=trained)
    assert done.returncode == 1
    assert done.stderr.startswith("error: run holds an earlier run (outcome.json, checkpoints, metrics.csv")
    for way in ("resume=auto", "hydra.run.dir=DIR", "overwrite=true"):
        assert way in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files(trained / "run") == before
    happened("`train.py` in the folder of an earlier run", done.stderr)


def test_a_finished_run_is_not_trained_again(trained: Path, videos: Path) -> None:
    before = json.loads((trained / "run/outcome.json").read_text())
    done = run_script("train.py", *words(videos, "run", "resume=auto"), folder=trained)
    assert done.returncode == 0, done.stderr
    assert "training is complete after 1 epoch, so nothing is trained" in done.stdout
    assert "random weights" not in done.stdout
    assert json.loads((trained / "run/outcome.json").read_text())["score"] == before["score"]


@pytest.mark.slow
def test_the_checkpoint_of_a_run_is_named_by_its_folder(trained: Path) -> None:
    done = run_script("eval.py", "ckpt_path=run", "hydra.run.dir=eval", "trainer=cpu", folder=trained)
    assert done.returncode == 0, done.stderr
    assert "ckpt_path=run is a folder: evaluating run/checkpoints/best.ckpt" in done.stdout
    again = run_script("eval.py", "ckpt_path=run", "hydra.run.dir=eval", "trainer=cpu", folder=trained)
    assert again.returncode == 1
    assert again.stderr.startswith("error: eval holds an earlier run")
    assert "resume" not in again.stderr
    done = run_script("eval.py", "ckpt_path=eval", "hydra.run.dir=eval2", folder=trained)
    assert "error: ckpt_path=eval: the folder has no best.ckpt, no vivit_train.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_earlier_run_can_be_moved_aside(trained: Path, videos: Path) -> None:
    before = files(trained / "run")
    for number in (1, 2):
        done = run_script("train.py", *words(videos, "run", "overwrite=true"), folder=trained)
        assert done.returncode == 0, done.stderr
        assert (trained / f"run.{number}/checkpoints/best.ckpt").is_file()
    del before[".lock"]  # It stays in the folder.
    assert files(trained / "run.1") == before


def test_an_error_is_one_message_without_hydras_words(videos: Path, tmp_path: Path) -> None:
    done = run_script("train.py", *words(videos, "run", "data.flip=3", "+epochs=2"), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: invalid configuration:",
        "  - epochs: there is no such key; did you mean trainer.max_epochs?",
        "  - data.flip=3: must be between 0 and 1",
    ]
    assert "ERROR error: invalid configuration:" in (tmp_path / "run/train.log").read_text()
    assert "data.flip=3" in json.loads((tmp_path / "run/outcome.json").read_text())["note"]


@pytest.mark.slow
def test_a_gpu_that_is_not_there(videos: Path, tmp_path: Path) -> None:
    done = run_script("train.py", "data=folder", f"data.root={videos}", "trainer=gpu", folder=tmp_path)
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert "trainer.accelerator=gpu: no GPU is found (torch " in done.stderr
    assert "set trainer=cpu or trainer=default" in done.stderr


REFUSED = {
    "an unknown key": (["epochs=3"], "epochs"),
    "a wrong value": (["data.flip=3"], "data.flip"),
    "another shape": (["model.dim=64"], "model.dim: 32 in the checkpoint, 64 here"),
    "a bad path": (["data.root=nowhere"], "no folder"),
    "no checkpoint": (["ckpt_path=nowhere.ckpt", "overwrite=true", "resume=null"], "nowhere.ckpt"),
    "no weights": (["init.path=nowhere.pth", "overwrite=true", "resume=null"], "nowhere.pth"),
    "other classes": (["data.root=fewer"], "the data differs"),
    "finished": ([], ""),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == "another shape" else pytest.mark.slow) for k in REFUSED]
)
def test_a_refused_restart_leaves_everything_as_it_was(kind: str, trained: Path, videos: Path) -> None:
    more, said = REFUSED[kind]
    if not (trained / "fewer").exists():
        for split in ("train", "val", "test"):
            (trained / "fewer" / split).mkdir(parents=True)
            for folder in sorted((videos / split).iterdir())[1:]:
                (trained / "fewer" / split / folder.name).symlink_to(folder)
    before = files(trained)
    done = run_script("train.py", *words(videos, "run", "resume=auto", *more), folder=trained)
    assert done.returncode == (kind != "finished"), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert files(trained) == before


def test_a_start_that_failed_in_its_checks_is_no_earlier_run(config: Any, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "run/outcome.json").write_text("{}")
    train(config("data=folder", f"data.root={videos}"))
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()


def test_an_earlier_run_is_refused_from_python_too(config: Any, tmp_path: Path, videos: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/outcome.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"run holds an earlier run \(outcome.json, checkpoints\): resume=auto goes"
    ):
        train(config("data=folder", f"data.root={videos}"))
    for more in (["resume=auto"], ["overwrite=true"]):
        with pytest.raises(UserError, match="nowhere"):
            train(config("data=folder", "data.root=nowhere", *more))
        assert sorted(path.name for path in tmp_path.glob("*")) == ["run"]
        assert list(files(tmp_path)) == ["run/outcome.json"]


@pytest.mark.slow
def test_an_evaluation_from_python_protects_a_folder_too(trained: Path, config: Any, tmp_path: Path) -> None:
    best = f"ckpt_path={trained}/run/checkpoints/best.ckpt"
    evaluate(config(best, name="eval"))
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"results holds an earlier run \(metrics.json\): hydra.run.dir=DIR"):
        evaluate(config(best, "overwrite=false", name="eval"))
    with pytest.raises(UserError, match="nowhere"):  # refused after the earlier results are moved aside
        evaluate(config("ckpt_path=nowhere.ckpt", name="eval"))
    assert files(tmp_path) == before


def test_a_resumed_run_is_compared_with_its_checkpoint(trained: Path, videos: Path) -> None:
    """What may change reaches the optimizer, the record and the new checkpoints."""
    shutil.copytree(trained / "run", trained / "longer")
    more = ["optimizer.lr=0.03", "scheduler=constant", "scheduler.warmup_epochs=0", "trainer.max_epochs=2"]
    done = run_script("train.py", *words(videos, "longer", "resume=auto", *more), folder=trained)
    assert done.returncode == 0, done.stderr
    record = (trained / "longer/recipe_differences.txt").read_text()
    for text in (done.stdout, record):
        assert "changed at step 3, when the run was resumed:" in text
        assert "-> 0.03" in text
        assert "trainer.max_epochs: 1 -> 2" in text
    last = torch.load(trained / "longer/checkpoints/last.ckpt", weights_only=True)
    assert [group["lr"] for group in last["optimizer_states"][0]["param_groups"]] == [0.03, 0.03]
    assert last["vivit_train"]["config"]["optimizer"]["lr"] == 0.03
    assert "random weights" not in done.stdout


def test_an_evaluation_at_another_shape(trained: Path) -> None:
    """Its result says that positions are interpolated; a shape that no model can have is one message."""
    size = ["data.frames=8", "data.crop=64", "data.short_side=72"]
    done = run_script("eval.py", "ckpt_path=run", "hydra.run.dir=wide", "trainer=cpu", *size, folder=trained)
    assert done.returncode == 0, done.stderr
    text = "clips of 8 frames of 64 pixels, trained on 4 of 32: position embeddings are interpolated"
    assert text in done.stdout
    assert json.loads((trained / "wide/metrics.json").read_text())["n"] == 16


@pytest.mark.slow
def test_an_evaluation_at_a_shape_that_cannot_be(trained: Path) -> None:
    words = ["ckpt_path=run", "hydra.run.dir=odd", "trainer=cpu", "data.frames=5"]
    done = run_script("eval.py", *words, folder=trained)
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.frames=5: run/checkpoints/best.ckpt: model cannot be built")
    assert "Traceback" not in done.stderr
