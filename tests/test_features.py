"""`vivit features` and `vivit search`: embeddings of three levels, files that resume, and the nearest clips."""

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SIZES, checkpoint, randomize
from forked import run_python
from helpers import ROOT
from safetensors import safe_open
from test_report import BROWSER, browse, text_of
from typer.testing import CliRunner, Result

import vivit_train
from vivit_train.data.synthetic import CLASSES
from vivit_train.models.embeddings import embeddings
from vivit_train.models.vivit import ViViT
from vivit_train.tools.cli import app
from vivit_train.utils.errors import UserError

Run = Callable[..., Result]
HOSTILE = "<img src=x onerror=document.title='x'>.mp4"


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model") / "motions.ckpt", {"": list(CLASSES)}))


@pytest.fixture
def run(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, in a folder with the videos."""
    (tmp_path / "videos").symlink_to(videos / "test")
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str) -> Result:
        workers = ["--workers", "0"] if words[0] == "features" else []
        return CliRunner().invoke(app, [*words, *workers])

    return invoke


def contents(file: Path | str) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """The features, ids and description in a file, as other programs read them."""
    if str(file).endswith(".npz"):
        arrays = np.load(file)
        return arrays["features"], arrays["ids"].tolist(), json.loads(str(arrays["about"]))
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
        return opened.get_tensor("features"), json.loads(metadata["ids"]), json.loads(metadata["about"])


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vivit_st", {"pool": "mean"}),
        ("vivit_st", {"pool": "mean", "fc_norm": True}),
        ("vivit_st", {"pool": "mean", "reg_tokens": 3}),
        ("vivit_fe", {"temporal_depth": 0}),
        ("vivit_fe", {"temporal_depth": 0, "pool": "mean", "reg_tokens": 2}),
        ("vivit_fsa", {}),
        ("vivit_fdp", {}),
    ],
    ids=str,
)
def test_the_levels_agree(model: Any, options: dict[str, Any]) -> None:
    """Models that pool by a mean: that of the frames, or of the tokens, is the embedding of the clip."""
    net = randomize(ViViT(model, num_classes=3, image_size=32, **SIZES | {"depth": 2}, **options)).eval()
    clips = torch.randn(3, *net.input_shape)
    with torch.no_grad():
        clip, frame, token = (embeddings(net, clips, level) for level in ("clip", "frame", "token"))
        assert frame.shape == (3, 2, 16)
        assert token.shape == (3, 2, 2, 2, 16)
        if not net.fc_norm:
            torch.testing.assert_close(frame.mean(1), clip, atol=1e-5, rtol=1e-5)
        if net.encoder.cls_token is None:
            mean = token.mean((2, 3))
            torch.testing.assert_close(net.encoder.norm(mean) if net.fc_norm else mean, frame)
            pooled = token.mean((1, 2, 3))
            torch.testing.assert_close(net.encoder.norm(pooled) if net.fc_norm else pooled, clip)


def test_class_and_register_tokens_are_no_places() -> None:
    """Only the second frame changes, and without attention, only its tokens do."""
    net = randomize(ViViT("vivit_st", num_classes=3, image_size=32, reg_tokens=2, **SIZES)).eval()
    for block in net.encoder.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)  # type: ignore[union-attr]
    clips = torch.randn(1, *net.input_shape)
    other = clips.clone()
    other[:, :, 2:] += 1
    with torch.no_grad():
        first, second = (embeddings(net, x, "token") for x in (clips, other))
    changed = (first != second).any(-1)[0].flatten(1)
    assert changed.tolist() == [[False] * 4, [True] * 4]


def test_a_file_has_the_embeddings_of_the_api(run: Run, ckpt: str) -> None:
    Path(HOSTILE).write_text("this is text")
    result = run("features", ckpt, "videos", HOSTILE, "none.mp4", "--views", "2x1", "--out", "out/a.safetensors")
    assert result.exit_code == 1, result.output
    assert "2 of 18 videos could not be read" in result.stderr
    assert "none.mp4: file does not exist" in result.stderr
    features, ids, about = contents("out/a.safetensors")
    model = vivit_train.load(ckpt, device="cpu")
    assert len(ids) == 16
    expected = model.embed(ids, views="2x1", num_workers=0)
    assert np.array_equal(features, expected.numpy())
    assert (about["checkpoint"], about["level"], about["views"]) == (ckpt, "clip", "2x1")
    assert [file.name for file in Path("out").iterdir()] == ["a.safetensors"]
    for level, shape in (("frame", (16, 4, 16)), ("token", (16, 4, 2, 2, 16))):
        assert run("features", ckpt, "videos", "--views", "2x1", "--level", level, "--out", "b.npz").exit_code == 0
        found, names, about = contents("b.npz")
        assert (found.shape, names, about["level"]) == (shape, ids, level)
        expected = model.embed(ids, views="2x1", level=level, num_workers=0)  # type: ignore[call-overload]
        assert np.array_equal(found, expected.numpy())
        Path("b.npz").unlink()


def test_clips_of_videos_and_half_precision(run: Run, ckpt: str) -> None:
    Path("clips.csv").write_text("path,start,end\nvideos/recede/0000.mp4,0,0.2\nvideos/recede/0000.mp4,0.2,0.5\n")
    words = ["features", ckpt, "clips.csv", "videos/push/none.mp4"]
    assert run(*words, "--half").exit_code == 1
    with safe_open("features.safetensors", "np") as opened:
        assert opened.get_tensor("features").dtype == np.float16
        assert opened.get_tensor("spans_s").tolist() == [[0, 0.2], [0.2, 0.5]]
    asked = run("search", "features.safetensors", "videos/recede/0000.mp4")
    assert asked.exit_code == 2
    assert (
        "has 2 clips in features.safetensors: name one, such as videos/recede/0000.mp4@0.00-0.20" in asked.stderr
    )
    asked = run("search", "features.safetensors", "videos/recede/0000.mp4@0.00-0.20")
    assert asked.stdout.split("\t")[1] == "videos/recede/0000.mp4@0.20-0.50\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["features", "CKPT", "videos", "--out", "a.csv"], "must end in .safetensors or .npz"),
        (["features", "CKPT", "videos", "--out", "there.npz"], "there.npz exists"),
        (["features", "CKPT", "videos", "--level", "token", "--views", "1x3"], "show different places"),
        (["features", "CKPT", "none.mp4"], "no video could be read"),
        (["features", "none.ckpt", "videos"], "no weights at none.ckpt"),
        (["search", "none.npz", "videos/push/0000.mp4"], "none.npz: no such file"),
        (["search", "there.npz", "videos/push/0000.mp4"], "there.npz is not a file of features"),
        (["search", "there.npz", "a.mp4", "--out", "there.npz"], "is no page of vivit-train"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_wrong_words_end_with_2(words: list[str], said: str, run: Run, ckpt: str) -> None:
    Path("there.npz").write_text("mine")
    result = run(*(ckpt if word == "CKPT" else word for word in words))
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert Path("there.npz").read_text() == "mine"


KILLER = """
import os, signal
from pathlib import Path
from vivit_train.data.video.decode import read_frames

def read(path, scan, wanted, short_side, cut):
    with open("decoded.txt", "a") as file:
        print(path, file=file)
    if path.endswith("recede/0000.mp4") and Path("kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return read_frames(path, wanted, short_side=short_side, cut=cut)
"""
EAGER = """
import vivit_train.training.features as features
from vivit_train.tools.cli import main

features.SHARD_S = 0.0
main()
"""


@pytest.mark.fault("Runs that end")
@pytest.mark.parametrize("ending", ["safetensors", pytest.param("npz", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_and_gives_the_same_file(
    ending: str, videos: Path, tmp_path: Path, happened: Callable[[str, object], None]
) -> None:
    """The process is really killed, by a decoder, and stores each batch at once."""
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "eager.py").write_text(EAGER)
    (tmp_path / "videos").symlink_to(videos / "test")
    (tmp_path / "bad.mp4").write_text("this is text")
    ckpt = checkpoint(tmp_path / "x.ckpt", {"": ["a", "b"]}, decoder="killer.read")
    words = ["features", str(ckpt), "bad.mp4", "videos", "--trusted", "killer", "--workers", "0"]
    words += ["--batch-size", "3", "--out"]

    def embed(out: str) -> Any:
        env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{tmp_path}"}
        return run_python("eager.py", *words, out, folder=tmp_path, env=env)

    whole = embed(f"whole.{ending}")
    assert whole.returncode == 1, whole.stderr
    decoded = (tmp_path / "decoded.txt").read_text().splitlines()
    assert len(decoded) == 16
    (tmp_path / "kill").touch()
    killed = embed(f"part.{ending}")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / f"part.{ending}").exists()
    (tmp_path / "kill").unlink()
    (tmp_path / "decoded.txt").unlink()
    resumed = embed(f"part.{ending}")
    assert resumed.returncode == 1
    assert "1 of 17 videos could not be read" in resumed.stderr
    assert re.search(r"going on: \d+ of 17 clips are in part", resumed.stdout)
    again = (tmp_path / "decoded.txt").read_text().splitlines()
    assert again == decoded[-len(again) :]
    assert len(again) < 10
    assert (tmp_path / f"part.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert not (tmp_path / f"part.{ending}.parts").exists()
    happened(
        "`vivit features` is killed (SIGKILL) and started again",
        f"it decodes {len(again)} of 16 videos, and the file is the same, byte by byte",
    )


def test_search_by_name_and_by_another_video(run: Run, ckpt: str, videos: Path) -> None:
    Path("near").mkdir()
    copy = Path("near", HOSTILE)
    copy.write_bytes((videos / "test/recede/0000.mp4").read_bytes())
    assert run("features", ckpt, "videos", "near").exit_code == 0
    by_name = run("search", "features.safetensors", "videos/recede/0000.mp4", "--top", "3")
    lines = [line.split("\t") for line in by_name.stdout.splitlines()]
    assert len(lines) == 3
    assert lines[0] == ["1.0000", str(copy)]
    by_file = run("search", "features.safetensors", str(videos / "test/recede/0000.mp4"), "--top", "3")
    assert {line.split("\t")[1] for line in by_file.stdout.splitlines()[:2]} == {
        lines[0][1],
        "videos/recede/0000.mp4",
    }
    features, ids, _ = contents("features.safetensors")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit[ids.index("videos/recede/0000.mp4")]
    assert lines[1][1] == ids[np.argsort(-similarity)[2]]
    page = Path("search.html").read_text()
    assert page.count("data:image/webp;base64,") == 4
    assert "<img src=x" not in page
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!#|data:)", own)
    assert "Nearest clips" in text_of(page)


@pytest.mark.parametrize("kind", ["cut", "pickle", "bomb", "integers", "other", "empty", "text"])
def test_a_file_of_a_stranger_is_refused(kind: str, run: Run) -> None:
    file = Path("a.npz")
    good = {"features": np.ones((2, 3), np.float32), "ids": np.array(["a", "b"]), "about": np.array("{}")}
    if kind == "text":
        file.write_text("this is text")
    elif kind == "bomb":
        np.savez_compressed(file, **good | {"features": np.zeros((2, 500_000), np.float32)})
    else:
        changed: dict[str, Any] = {
            "pickle": {"ids": np.array([print, print], dtype=object)},
            "integers": {"features": np.ones((2, 3), np.int64)},
            "other": {"ids": np.array(["a"])},
            "empty": {"features": np.ones((0, 3), np.float32), "ids": np.array([], dtype=str)},
        }.get(kind, {})
        np.savez(file, **good | changed)
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    result = run("search", "a.npz", "a")
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "a.npz is " in result.stderr or "a.npz cannot be read" in result.stderr


def test_search_refuses_another_model(run: Run, ckpt: str, tmp_path: Path) -> None:
    assert run("features", ckpt, "videos/recede").exit_code == 0
    other = checkpoint(tmp_path / "other.ckpt", {"": ["a", "b"]})
    result = run("search", "features.safetensors", "videos/push/0000.mp4", "--checkpoint", str(other))
    assert result.exit_code == 2
    assert "are not those of this model" in result.stderr


@pytest.mark.slow
def test_an_image_vit_embeds_frames_like_timm(run: Run) -> None:
    """Any weights that training can start from; they need no classes."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32).eval()
    save_file(theirs.state_dict(), "vit_tiny_patch16_224.augreg_in21k.safetensors")
    words = ["features", "vit_tiny_patch16_224.augreg_in21k.safetensors", "videos/recede/0000.mp4"]
    assert run(*words, "--level", "frame").exit_code == 0
    found = torch.from_numpy(contents("features.safetensors")[0])
    model = vivit_train.load(words[1], device="cpu", head=False)
    clip = model.preprocess(words[2])
    with torch.no_grad():
        expected = theirs.forward_features(model.task.normalise(clip[0]))[:, 0]
    assert found.shape == (1, 8, 192)
    torch.testing.assert_close(found[0], expected, atol=2e-3, rtol=1e-3)  # timm has another form of GELU
    with pytest.raises(UserError, match="no classes to predict"):
        model.predict(words[2], num_workers=0)


@pytest.mark.slow
def test_a_videomae_embeds_like_transformers(run: Run) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.VideoMAEConfig(num_frames=4, image_size=32, patch_size=8, layer_norm_eps=1e-6, **sizes)
    torch.manual_seed(0)
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    theirs.save_pretrained("mae")
    model = vivit_train.load("mae", device="cpu", head=False)
    clip = model.preprocess("videos/recede/0000.mp4")
    with torch.no_grad():
        tokens = theirs.videomae(model.task.normalise(clip)).last_hidden_state
        expected = theirs.fc_norm(tokens.mean(1))[0]
    found = model.embed("videos/recede/0000.mp4", num_workers=0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_commands_of_the_page_run(run: Run, ckpt: str, videos: Path) -> None:
    Path("runs/mine/checkpoints").mkdir(parents=True)
    Path("runs/mine/checkpoints/best.ckpt").symlink_to(ckpt)
    Path("videos").unlink()
    Path("videos").mkdir()
    Path("another.mp4").write_bytes((videos / "test/recede/0000.mp4").read_bytes())
    for name in "ab":
        Path(f"videos/{name}.mp4").write_bytes((videos / f"test/recede/000{name == 'b':d}.mp4").read_bytes())
    block = (ROOT / "docs/features.md").read_text(encoding="utf-8").split("```")[1]
    commands = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("vivit")]
    assert len(commands) == 4
    for _, *words in commands:
        result = run(*words)
        assert result.exit_code == 0, result.output
    assert contents("frames.npz")[0].shape == (2, 8, 16)
    assert Path("near.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_works_in_a_browser(run: Run, ckpt: str, videos: Path, tmp_path: Path) -> None:
    Path("near").mkdir()
    Path("near", HOSTILE).write_bytes((videos / "test/recede/0000.mp4").read_bytes())
    assert run("features", ckpt, "videos", "near").exit_code == 0
    assert run("search", "features.safetensors", "videos/recede/0000.mp4", "--top", "8").exit_code == 0
    script = """
    const root = document.documentElement, images = [...document.querySelectorAll('.video img')];
    images.forEach((image) => { image.loading = 'eager'; });
    await Promise.all(images.map((image) => image.decode()));
    return { overflow: root.scrollWidth - root.clientWidth, title: document.title, cards: images.length,
      decoded: images.every((image) => image.naturalWidth === 160),
      page: getComputedStyle(document.body).backgroundColor,
      first: document.querySelector('#nearest .truth').textContent };"""
    light = browse(tmp_path / "search.html", script, width=500)
    dark = browse(tmp_path / "search.html", script, width=500, dark=True)
    assert (light["overflow"], light["cards"], light["decoded"]) == (0, 9, True)
    assert light["title"] == "Nearest clips of 0000.mp4"
    assert light["first"] == "1. 1.0000"
    assert light["page"] != dark["page"]
