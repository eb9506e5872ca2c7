"""What `vivit export` has written is loaded again where its files say enough, and otherwise says what to name."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SIZES, checkpoint
from typer.testing import CliRunner
from videos import encode

import vivit_train
from vivit_train import create_model, load_pretrained
from vivit_train.data.synthetic import CLASSES
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import GRAPHS
from vivit_train.tools.cli import app
from vivit_train.tools.export.card import write_example
from vivit_train.utils.errors import UserError

NAMES = {"": list(CLASSES)}
CLIP: dict[str, Any] = {"stride": 3, "padding": "repeat_last", "resize_mode": "stretch"}
EPIC = {"verb": [f"verb {i}" for i in range(97)], "noun": [f"noun {i}" for i in range(300)]}


def vivit(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, (words, done.output, done.exception)
    return done.output


def exported(folder: Path, format: str, classes: dict[str, list[str]] = NAMES, **settings: Any) -> Path:
    """Exports a checkpoint of random weights; returns the folder, beside best.ckpt."""
    ckpt = checkpoint(folder / "best.ckpt", classes, **settings)
    vivit("export", ckpt, "--format", format, "--out", folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    ("format", "model"),
    [
        ("scenic", "vivit_fdp"),
        *(pytest.param("scenic", model, marks=pytest.mark.slow) for model in ("vivit_st", "vivit_fe")),
        pytest.param("huggingface", "vivit_st", marks=pytest.mark.slow),
    ],
)
def test_it_predicts_as_the_checkpoint(format: str, model: str, videos: Path, tmp_path: Path) -> None:
    """Also what only `preprocessing.json` or `vivit_train.json` say: names, stride, padding and stretching."""
    pool = {} if format == "huggingface" else {"pool": "mean"}  # Then models 1 and 4 have the same parameters.
    folder = exported(tmp_path, format, model={"model": model, **pool}, **CLIP)
    ours, loaded = (vivit_train.load(path, device="cpu") for path in (tmp_path / "best.ckpt", folder))
    video = next(videos.glob("test/*/*.mp4"))
    for views in ("1x1", "2x3"):
        assert torch.equal(loaded.preprocess(video, views=views), ours.preprocess(video, views=views))
    torch.testing.assert_close(*(m.logits(m.preprocess(video)) for m in (ours, loaded)), atol=1e-4, rtol=1e-4)
    assert loaded.classes == ours.classes


def test_the_heads_of_the_authors_epic_model_come_back_in_our_order(tmp_path: Path) -> None:
    folder = exported(tmp_path, "scenic", EPIC, model={"model": "vivit_fsa", "order": "time_space"})
    ours, loaded = (vivit_train.load(path, device="cpu") for path in (tmp_path / "best.ckpt", folder))
    clips = torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(loaded.logits(clips), ours.logits(clips), atol=1e-4, rtol=1e-4)
    assert loaded.classes == ours.classes


@pytest.mark.slow
@pytest.mark.parametrize("format", ["scenic", "safetensors"])
def test_it_is_evaluated_and_trained_from(format: str, videos: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, format)
    scores = [
        vivit_train.evaluate(
            f"ckpt_path={path}", "data=folder", f"data.root={videos}", "eval.report=false", run_dir=tmp_path / name
        ).metrics["test/top1@1x1"]
        for name, path in (("a", tmp_path / "best.ckpt"), ("b", folder))
    ]
    assert scores[0] == scores[1]
    with pytest.raises(UserError, match=r"out names no videos: set data=NAME data\.root=DIR"):
        vivit_train.evaluate(f"ckpt_path={folder}", run_dir=tmp_path / "c")

    net = vivit_train.load(folder, device="cpu").task.net
    new = ViViT("vivit_st", num_classes=len(CLASSES), image_size=32, **SIZES)
    load_pretrained(new, folder, classes=NAMES)
    assert torch.equal(new.encoder.pos_embed, net.encoder.pos_embed)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "program"), GRAPHS.items())
@pytest.mark.parametrize("inside", [True, False], ids=["folder", "file"])
def test_a_graph_says_what_runs_it_and_what_to_name(
    file: str, program: str, inside: bool, videos: Path, tmp_path: Path
) -> None:
    """The name of the file tells; test_every_checkpoint.py exports real ones."""
    folder = exported(tmp_path, "safetensors")
    for name in ("model.safetensors", "vivit_train.json"):
        (folder / name).unlink()
    (folder / file).write_bytes(b"graph")
    path = folder if inside else folder / file
    message = re.compile(
        f"{path} is an export for other programs, which {program} runs; python {folder}/example.py VIDEO predicts "
        "with it. Name the checkpoint that it was exported from instead, or export that with --format safetensors"
    )
    video = next(videos.glob("test/*/*.mp4"))
    for words in (("predict", path, video), ("features", path, video), ("explain", path, video)):
        said = vivit(*words, code=2)
        assert message.search(" ".join(said.split())), said
    with pytest.raises(UserError, match=message):
        vivit_train.evaluate(f"ckpt_path={path}", "data=folder", f"data.root={videos}", run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=message):
        load_pretrained(create_model("vivit_fe", "Ti", num_classes=2), path)


def test_a_graph_is_refused_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"graph")
    message = r"model\.pt2 is an export for other programs, which torch\.export\.load runs\. Name the checkpoint"
    with pytest.raises(UserError, match=message):
        vivit_train.load(tmp_path / "model.pt2")


@pytest.mark.slow
def test_a_file_of_a_folder_names_the_folder(videos: Path, tmp_path: Path) -> None:
    video = next(videos.glob("test/*/*.mp4"))
    for format, file in (("safetensors", "model.safetensors"), ("scenic", "checkpoint_0")):
        (tmp_path / format).mkdir()
        folder = exported(tmp_path / format, format)
        said = " ".join(vivit("predict", folder / file, video, code=2).split())
        assert f"name its folder, {folder}" in said
        assert vivit_train.load(folder / "vivit_train.json", device="cpu").classes == {"": CLASSES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"depth": 900000000', "depth is 900000000, but the weights have 1 layer"),
        ('"dim": 17', "dim|divisible|heads"),
        ('"heads": 4', "has 2 heads, the model 4"),
        ('"frames": "x"', "frames"),
    ],
)
def test_a_folder_of_a_stranger_that_lies_is_one_message(change: str, message: str, tmp_path: Path) -> None:
    file = exported(tmp_path, "scenic") / "vivit_train.json"
    key = change.partition(":")[0]
    before = file.read_text()
    file.write_text(re.sub(rf"{key}: [^,\n]*", change, before))
    assert file.read_text() != before
    with pytest.raises(UserError, match=message):
        vivit_train.load(file.parent)


@pytest.mark.parametrize(
    ("sampling", "padding", "stride", "rotation"),
    [
        ("segments", "wrap", 2, 0),
        *(pytest.param("window", how, 40, 0, marks=pytest.mark.slow) for how in ("wrap", "repeat_last", "black")),
        *(pytest.param("window", "wrap", 1, degrees, marks=pytest.mark.slow) for degrees in (0, 90, -90)),
    ],
)
def test_its_example_reads_the_frames_that_we_read(
    sampling: str, padding: str, stride: int, rotation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example that ONNX models have, with a session that keeps the clips it is given."""
    folder = exported(tmp_path, "safetensors", sampling=sampling, padding=padding, stride=stride)
    write_example(folder, "onnx")
    given: list[np.ndarray] = []
    video = tmp_path / "a.mp4"
    encode(video, rotation=rotation)

    class InferenceSession:
        def __init__(self, _: Path) -> None:
            pass

        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            given.append(inputs["clips"])
            return [np.zeros((1, len(CLASSES)))]

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=InferenceSession))
    monkeypatch.setattr(sys, "argv", ["example.py", str(video)])
    runpy.run_path(str(folder / "example.py"))
    expected = vivit_train.load(folder, device="cpu").preprocess(video).numpy()
    assert given[0].shape == expected.shape
    assert np.abs(given[0].astype(int) - expected).mean() < 3  # their resizing differs a little
