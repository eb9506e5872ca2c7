"""The packages of docs/extending.md, written to a folder outside the repository and used from there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from forked import run_python
from helpers import ROOT, TINY
from safetensors.torch import save_file

import vivit_train

FILE = re.compile(r"^`(my[\w/.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, videos: Path) -> Path:
    """A user's folder with the files of the page, and clips.jsonl beside the videos."""
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    lines = [
        {"video": f"{split}/{file.parent.name}/{file.name}", "label": file.parent.name, "split": split}
        for split in ("train", "val")
        for file in sorted(videos.glob(f"{split}/*/*.mp4"))
    ]
    (tmp_path / "videos").symlink_to(videos)
    (tmp_path / "clips.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def vivit(project: Path, command: str, *words: str) -> str:
    """Runs `vivit train` or `vivit eval` in the user's folder; returns its output."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    done = run_python("-m", f"vivit_train.tools.{command}", *words, folder=project, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(project: Path, *words: str, run: str = "run") -> str:
    tiny = [word for word in TINY if not word.startswith("model.dim")]
    data = ["data=gestures", "data.root=videos", f"data.reader.file={project}/clips.jsonl"]
    return vivit(
        project, "train", "--config-dir", "myconf", *data, *tiny, "model.dim=32", f"hydra.run.dir={run}", *words
    )


def test_the_page_shows_at_most_two_files_for_each() -> None:
    sections = [FILE.findall(part) for part in PAGE.split("\n## ")]
    assert {name for part in sections for name, _ in part} >= {
        "mypkg/gestures.py",
        "mypkg/gated.py",
        "mypkg/poly.py",
        "mypkg/opencv.py",
        "mypkg/weights.py",
    }
    assert all(len([name for name, _ in part if name.endswith(".py")]) <= 1 for part in sections)


def test_a_data_set_a_model_a_loss_and_an_optimizer_of_ones_own(project: Path) -> None:
    out = train(project, "model=gated", "loss=poly", "optimizer=nadam")
    assert "source   gestures" in out
    assert "settings differ from the defaults of conf/train.yaml" in out
    ckpt = "run/checkpoints/best.ckpt"
    saved = torch.load(project / ckpt, weights_only=True)
    config: dict[str, Any] = saved["vivit_train"]["config"]
    assert config["loss"] == {"_target_": "mypkg.poly.PolyLoss", "epsilon": 1.5}
    assert config["optimizer"]["_target_"] == "torch.optim.NAdam"
    assert "net.gate" in saved["state_dict"]
    vivit(project, "eval", f"ckpt_path={ckpt}", "trusted=[mypkg]", "hydra.run.dir=eval")
    assert json.loads((project / "eval/metrics.json").read_text())["n"] == 8


def test_a_file_with_the_name_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "myconf/loss").mkdir(parents=True)
    (tmp_path / "myconf/loss/focal.yaml").write_text("_target_: mypkg.Focal\n")
    done = run_python(
        "-m", "vivit_train.tools.cli", "train", "--config-dir", "myconf", "loss=focal", folder=tmp_path
    )
    assert done.returncode == 1
    assert "loss/focal.yaml: vivit-train has loss/focal.yaml itself and would use that: rename" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_decoder_of_ones_own(project: Path) -> None:
    train(project, "data.decoder=mypkg.opencv.read")
    ckpt = "run/checkpoints/best.ckpt"
    refused = subprocess.run(
        [sys.executable, "-m", "vivit_train.tools.cli", "eval", f"ckpt_path={ckpt}"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "trusted=[mypkg]" in refused.stderr
    vivit(project, "eval", f"ckpt_path={ckpt}", "trusted=[mypkg]", "hydra.run.dir=eval")
    assert json.loads((project / "eval/metrics.json").read_text())["failed"] == 0


@pytest.mark.slow
def test_a_kind_of_weights_of_ones_own(project: Path) -> None:
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32}
    state = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes).state_dict()
    save_file({f"backbone/{name}": value for name, value in state.items()}, project / "image.safetensors")
    out = train(project, "init.path=image.safetensors", "init.source=mypkg.weights.detect", "model.mlp_dim=128")
    assert "mean [0.4, 0.4, 0.4], std [0.3, 0.3, 0.3]" in out


def test_the_python_functions(videos: Path, tmp_path: Path) -> None:
    net = vivit_train.create_model("vivit_fe", size="Ti", num_classes=8, frames=4, image_size=32, depth=1)
    assert net(torch.rand(1, 3, 4, 32, 32)).shape == (1, 8)
    words = [*TINY, "data=folder", f"data.root={videos}"]
    cfg = vivit_train.compose(*words, run_dir=tmp_path / "run")
    assert 0 <= vivit_train.train(cfg).score <= 1
    classifier = vivit_train.load_model(tmp_path / "run/checkpoints/best.ckpt")
    assert isinstance(classifier, vivit_train.VideoClassifier)
    clips = torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert classifier(clips).shape == (2, len(classifier.classes[""]))


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import os, sys, logging; before = set(sys.modules); env = dict(os.environ); import vivit_train;"
        "assert not {'torch', 'hydra', 'lightning'} & set(sys.modules); assert dict(os.environ) == env;"
        "assert not logging.getLogger('vivit_train').handlers;"
        "assert set(vivit_train.__all__) <= set(dir(vivit_train));"
        "print(vivit_train.__version__); import pathlib;"
        "assert (pathlib.Path(vivit_train.__file__).parent / 'py.typed').exists()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in vivit_train.__all__:
        assert getattr(vivit_train, name).__doc__
