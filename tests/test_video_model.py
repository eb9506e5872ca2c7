"""The Python API: a model predicts what eval.py predicts, with its own preprocessing; results are objects."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SIZES, checkpoint, randomize
from helpers import ROOT, TINY
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from typer.testing import CliRunner

import vivit_train
from vivit_train.data.synthetic import CLASSES
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.huggingface import save_huggingface
from vivit_train.models.weights.scenic import save_scenic
from vivit_train.tools.cli import app
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.video_model import ahead


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model") / "motions.ckpt", {"": list(CLASSES)})


@pytest.fixture(scope="module")
def model(ckpt: Path) -> vivit_train.VideoModel:
    return vivit_train.load(ckpt, device="cpu")


def test_predictions_are_the_rows_of_an_evaluation(
    ckpt: Path, model: vivit_train.VideoModel, videos: Path, config: Callable[..., DictConfig]
) -> None:
    words = [f"ckpt_path={ckpt}", "data=folder", f"data.root={videos}", "eval.views=2x3"]
    result = vivit_train.evaluate(config(*words, "data.num_workers=0", name="eval"))
    paths = [videos / row["id"] for row in result.rows]
    predictions = model.predict(paths, views="2x3", num_workers=1)
    assert len(predictions) == result["n"] == 16
    assert set(result) == set(result.metrics) >= {"test/top1@2x3", "views", "per_class"}
    assert len({prediction.logits.tobytes() for prediction in predictions}) == 16
    for row, prediction in zip(result.rows, predictions, strict=True):
        assert prediction.labels[0].name == row["prediction"]
        assert prediction.labels[0].probability == pytest.approx(row["probability"], abs=1e-3)
        logits = [row[f"logit:{name}"] for name in model.classes[""]]
        assert [float(f"{value:.6g}") for value in prediction.logits] == logits
    assert result.metrics == json.loads(result.paths["metrics.json"].read_text())


def test_one_video_in_every_way(model: vivit_train.VideoModel, videos: Path) -> None:
    path = str(next(videos.glob("test/*/*.mp4")))
    prediction = model.predict(path, views="2x1", top=3, num_workers=0)
    assert prediction.video == path
    assert len(prediction.labels) == 3
    shares = torch.from_numpy(prediction.logits).double().softmax(0)
    assert [label.probability for label in prediction.labels] == pytest.approx(shares.topk(3).values.tolist())
    views = model.preprocess(path, views="2x1")
    assert (views.dtype, views.shape) == (torch.uint8, (2, 4, 3, 32, 32))
    assert torch.equal(model.logits(views).mean(0), torch.from_numpy(prediction.logits))
    assert f"{prediction.labels[0].name}\n" in str(prediction)
    embedding = model.embed(path, num_workers=0)
    assert torch.allclose(model.embed([path, path], num_workers=0), torch.stack([embedding] * 2), atol=1e-5)
    head = model.task.net.head
    assert torch.allclose(head(embedding), model.logits(model.preprocess(path))[0], atol=1e-5)


def test_a_video_that_cannot_be_read_has_no_labels(
    model: vivit_train.VideoModel, videos: Path, tmp_path: Path
) -> None:
    bad, good = tmp_path / "bad.mp4", next(videos.glob("test/*/*.mp4"))
    bad.write_text("this is text")
    first, second = model.predict([bad, good], num_workers=0)
    assert (first.labels, first.heads, first.logits.size) == ((), {}, 0)
    assert "not a video file" in first.error
    assert first.to_dict() == {"video": str(bad), "error": first.error}
    assert second.labels
    for attempt in (model.predict, model.embed, model.preprocess):
        with pytest.raises(VideoError, match="does not exist"):
            attempt(tmp_path / "none.mp4")
    with pytest.raises(UserError, match=r"^views=3x2: must be"):
        model.predict(good, views="3x2")


def test_several_heads_and_several_labels(videos: Path, tmp_path: Path) -> None:
    path = next(videos.glob("test/*/*.mp4"))
    classes = {"verb": ["take", "put", "open"], "noun": ["cup", "door"]}
    epic = vivit_train.load(checkpoint(tmp_path / "epic.ckpt", classes), device="cpu")
    found = epic.predict(path, num_workers=0)
    assert list(found.heads) == ["verb", "noun", "action"]
    verb, noun = (torch.from_numpy(part).double().softmax(0) for part in np.split(found.logits, [3]))
    pairs = {
        f"{v} {n}": float(verb[i] * noun[j])
        for i, v in enumerate(classes["verb"])
        for j, n in enumerate(classes["noun"])
    }
    best = sorted(pairs, key=lambda name: -pairs[name])[:5]
    assert [label.name for label in found.labels] == best
    assert [label.probability for label in found.labels] == pytest.approx([pairs[name] for name in best])
    assert found.to_dict()["labels"]["action"][0]["name"] == best[0]

    several = checkpoint(tmp_path / "tags.ckpt", {"": ["a", "b", "c"]}, multi_label=True)
    labels = vivit_train.load(several, device="cpu").predict(path, num_workers=0).labels
    assert sum(label.probability for label in labels) != pytest.approx(1)
    with pytest.raises(UserError, match="cannot be replaced"):
        vivit_train.load(tmp_path / "epic.ckpt", labels=["x"])


def test_a_model_of_hugging_face(videos: Path, tmp_path: Path) -> None:
    net = randomize(ViViT("vivit_st", num_classes=3, image_size=32, **SIZES | {"frames": 8}))
    folder, names = tmp_path / "hub", ["a", "b", "c"]
    save_huggingface(net, folder, classes=names, mean=[0.4] * 3, std=[0.3] * 3, short_side=36)
    model = vivit_train.load(folder, device="cpu")
    path = next(videos.glob("test/*/*.mp4"))
    assert model.preprocess(path).shape == (1, 8, 3, 32, 32)
    assert model.predict(path, num_workers=0).labels[0].name in names
    with torch.no_grad():
        video = (model.preprocess(path).transpose(1, 2) / 255 - 0.4) / 0.3
        assert torch.allclose(model.logits(model.preprocess(path)), net(video), atol=1e-4)

    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(k): f"LABEL_{k}" for k in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names no classes"):
        vivit_train.load(folder)
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    assert vivit_train.load(folder, labels=tmp_path / "names.txt").classes == {"": ("x", "y", "z")}
    with pytest.raises(UserError, match=r"2 names.*3 classes"):
        vivit_train.load(folder, labels=["x", "y"])


def test_a_checkpoint_of_the_authors(videos: Path, tmp_path: Path) -> None:
    net = randomize(ViViT("vivit_fe", num_classes=3, image_size=32, **SIZES))
    save_scenic(net, tmp_path / "checkpoint_7")
    with pytest.raises(UserError, match="names no classes"):
        vivit_train.load(tmp_path / "checkpoint_7")
    model = vivit_train.load(tmp_path, labels=["a", "b", "c"], device="cpu")
    clips = model.preprocess(next(videos.glob("test/*/*.mp4")))
    with torch.no_grad():
        assert torch.allclose(model.logits(clips), net(clips.transpose(1, 2) / 127.5 - 1), atol=1e-4)


@pytest.mark.parametrize(("source", "words"), [("none.ckpt", "no such file"), (".", "neither best.ckpt")])
def test_what_cannot_be_loaded(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        vivit_train.load(tmp_path / source)


@pytest.mark.slow
def test_the_pages_docs_python_and_docs_predict(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the one and the commands of the other run, with a small model and the videos of the tests."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # no job of Hydra, unlike the fixture `config`
    monkeypatch.chdir(tmp_path)
    Path("videos").symlink_to(videos)
    for name in ("video.mp4", "long.mp4"):
        Path(name).symlink_to(next(videos.glob("test/*/*.mp4")))
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    predicting, training = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"vivit_train": vivit_train}
    exec(training.replace('"init=imagenet"', ", ".join(map(repr, TINY))), names)
    exec(predicting, names)
    run, prediction = names["result"], names["prediction"]
    assert 0 <= run.score <= 1
    assert run.checkpoint.samefile(run.paths["checkpoints/best.ckpt"])
    assert len(run.rows) == run["n"] == names["views"]["n"] == 16
    assert len(prediction.labels) == 3
    with pytest.raises(UserError, match="run_dir"):
        vivit_train.train("data=folder", "data.root=videos")

    block = (ROOT / "docs/predict.md").read_text(encoding="utf-8").split("```")[1]
    commands = [
        shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("vivit predict")
    ]
    assert len(commands) == 4
    for _, *words in commands:
        if not any(word.startswith("rtsp://") for word in words):  # There is no camera.
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, result.output
    assert Path("a.csv").exists()
    assert Path("timelines/long.html").exists()


@pytest.mark.parametrize("by", [0, 1])
def test_a_batch_is_launched_before_the_one_before_it_is_read(by: int) -> None:
    """On a GPU, by = 1: it is busy while labels are made and the next batch is copied."""
    done: list[str] = []

    def batches() -> Iterator[Any]:
        for number in range(4):
            done.append(f"load {number}")
            yield number
        raise UserError("a loader process died")

    def launch(number: Any) -> torch.Tensor:
        done.append(f"launch {number}")
        return torch.tensor(number)

    read: list[Any] = []

    def labels() -> None:
        for number, result in ahead(batches(), launch, by):
            assert int(result) == number
            read.append(number)
            done.append(f"read {number}")

    with pytest.raises(UserError, match="died"):
        labels()
    assert read == [0, 1, 2, 3]
    first_read = done.index("read 0")
    assert done[:first_read] == [f"{word} {k}" for k in range(by + 1) for word in ("load", "launch")]


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_it_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code cells, one after the other in one namespace, as Jupyter runs them."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    cells = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        stored = "".join("".join(output["text"]) for output in cell["outputs"])
        assert form(capsys.readouterr().out) == form(stored), f"cell {number}: run make notebook"
    assert names["result"]["n"] == len(names["result"].rows)


def form(output: str) -> list[str]:
    """What does not depend on the machine in an output: no numbers, predictions, progress and advice."""
    lines = [re.sub(r"[\d.:]+", "0", line) for line in output.splitlines()]
    kept = ("source", "classes", "train ", "val ", "test ", "model:", "run folder:", "mean over", "top-0", "torch")
    return [re.sub(r"/\S*/(?=runs|videos)", "/", line) for line in lines if line.startswith(kept)]
