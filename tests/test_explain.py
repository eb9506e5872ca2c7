"""vivit explain: a page and a heat map per video; on the demo, the map lies on the moving shape and matters."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import pytest
import torch
from helpers import TINY
from torch import Tensor
from typer.testing import CliRunner

import vivit_train
from vivit_train.data.synthetic import make_demo
from vivit_train.models.probe import FrameProbe
from vivit_train.models.relevance import Method, relevance
from vivit_train.run import train
from vivit_train.tools.cli import app
from vivit_train.tools.explain.pictures import heat_of, overlaid
from vivit_train.video_model import VideoModel


@pytest.fixture(scope="module")
def run_folder(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = [*TINY, "data=folder", f"data.root={videos}", "callbacks.contact_sheet=null", "optimizer.lr=0.01"]
    train(vivit_train.compose(*words, run_dir=folder))
    return folder


def test_a_page_and_a_heat_map_per_video(
    run_folder: Path, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [str(file) for file in sorted(videos.glob("test/*/0000.mp4"))[:2]]
    (tmp_path / "bad.mp4").write_text("this is text")
    words = [*good, str(tmp_path / "bad.mp4"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(app, ["explain", str(run_folder), *words, "--class", "recede"])
    assert done.exit_code == 1, done.output
    assert "bad.mp4" in done.output + caplog.text
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("data:image/webp;base64,") == 2 * (1 + 4)
    assert page.count("speak for <strong>recede</strong>") == 2
    assert '<a href="#video1">0000.mp4</a><a href="#reading">How to read this</a>' in page
    for name in ("1_0000.mp4", "2_0000.mp4"):
        with av.open(str(tmp_path / "out" / name)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == 4
        assert (frames[0].width, frames[0].height) == (320, 352)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "fly"], "--class fly: the model knows approach, "),
        (["--out", "full"], "full exists: choose another folder for --out"),
        (["nowhere.mp4"], "no video can be read"),
    ],
)
def test_what_cannot_be_is_one_message(
    words: list[str],
    message: str,
    run_folder: Path,
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    given = words if words[0].endswith(".mp4") else [str(next(videos.glob("test/*/*.mp4"))), *words]
    done = CliRunner().invoke(app, ["explain", str(run_folder), *given])
    assert done.exit_code == 2
    assert message in done.output + caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_heat_lies_where_the_relevance_is() -> None:
    relevance_thw = torch.zeros(2, 4, 4)
    relevance_thw[1, 3, 0] = 1
    heat_THW = heat_of(relevance_thw, 4, 32, 32)
    assert heat_THW.shape == (4, 32, 32)
    assert heat_THW[:2].max() == 0
    assert heat_THW[2:, 28, 3].min() == 1
    plain, heat = overlaid(torch.full((4, 3, 32, 32), 90, dtype=torch.uint8), heat_THW)
    changed = (plain != heat).any(-1)
    assert not changed[:2].any()
    assert changed[2:, 300, 20].all()
    assert not changed[2:, :100].any()


def deleted(clips: Tensor, scores_Bthw: Tensor, share: float = 0.2) -> Tensor:
    """Clips whose tubelets with the highest scores have the clip's mean color."""
    B, T, _, H, W = clips.shape
    _, t, h, w = scores_Bthw.shape
    flat = scores_Bthw.flatten(1)
    chosen = torch.zeros_like(flat).scatter(1, flat.topk(int(share * flat.shape[1]), 1).indices, 1)
    mask = chosen.view(B, t, 1, h, 1, w, 1).expand(-1, -1, T // t, -1, H // h, -1, W // w).reshape(B, T, 1, H, W)
    mean = clips.float().mean((1, 3, 4), keepdim=True).byte().expand_as(clips)
    return torch.where(mask.bool(), mean, clips)


def moving_share(clips: Tensor, scores_Bthw: Tensor) -> float:
    """How many times as much relevance the places of the strongest motion have as their share of the clip."""
    _, t, h, w = scores_Bthw.shape
    gray = clips.float().mean(2)
    moving = (gray - gray.median(1, keepdim=True).values).abs()
    moving = moving.view(len(clips), t, clips.shape[1] // t, h, clips.shape[3] // h, w, clips.shape[4] // w)
    motion, flat = moving.mean((2, 4, 6)).flatten(1), scores_Bthw.flatten(1)
    shape = motion > motion.max(1, keepdim=True).values / 2
    return float(((flat * shape).sum(1) / flat.sum(1)).mean() / shape.float().mean())


def explained(model: VideoModel, files: list[Path], method: Method) -> tuple[Tensor, Tensor, float, float]:
    """Clips, their relevance, and how much of the probability their best fifth and a random fifth take away."""
    clips = torch.cat([model.preprocess(file)[:1] for file in files])
    best_B1 = model.logits(clips).argmax(1, keepdim=True)
    video = model.task.normalise(clips).transpose(1, 2)
    found = torch.cat([relevance(model.task.net, clip[None], method=method)[0] for clip in video])

    def probability(clips: Tensor) -> float:
        return float(model.logits(clips).softmax(1).gather(1, best_B1).mean())

    whole = probability(clips)
    lost = whole - probability(deleted(clips, found))
    by_chance = whole - probability(deleted(clips, torch.rand(found.shape, generator=torch.manual_seed(0))))
    return clips, found, lost, by_chance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "method"),
    [
        ((), "gradient"),
        ((), "rollout"),
        (("model=vivit_fsa",), "gradient"),  # The head sees the mean of all tokens.
        (("model=vivit_st", "model.pool=mean"), "gradient"),
    ],
)
def test_on_the_demo_the_map_lies_on_the_moving_shape(
    words: tuple[str, ...], method: Method, trained_demo: Callable[..., tuple[Path, Path]]
) -> None:
    folder, data = trained_demo(*words)
    model = vivit_train.load(folder, device="cpu")
    clips, found, lost, by_chance = explained(model, sorted(data.glob("test/*/*.mp4"))[::4], method)
    assert moving_share(clips, found) > 2  # 3.8 and 3.1 were measured, 2.9 with vivit_fsa, 4.0 with vivit_st
    assert lost > 0.15
    assert lost > 3 * by_chance


@pytest.mark.slow
def test_on_real_clips_the_map_of_a_head_on_frozen_features_matters(shared: Path, tmp_path: Path) -> None:
    root = shared / "videos/ut_interaction"
    words = [f"data.root={root}", "data.train=train.csv", "data.val=test.csv", "trainer=cpu", "seed=0"]
    words += [
        "recipe=few_clips",
        "data=csv",
        f"init.path={shared / 'weights/deit_tiny_patch16_224.fp16.safetensors'}",
    ]
    train(vivit_train.compose(*words, run_dir=tmp_path / "run"))
    model = vivit_train.load(tmp_path / "run", device="cpu")
    assert isinstance(model.task.net, FrameProbe)
    clips, found, lost, by_chance = explained(model, sorted(root.rglob("*.avi"))[::3], "gradient")
    assert moving_share(clips, found) > 1.2  # 1.4 was measured; the map before had 1.0
    assert lost > 0.3  # 0.54 was measured, and 0.10 by chance
    assert lost > 3 * by_chance


@pytest.fixture(scope="module")
def trained_demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """A run of the demo with these words, trained when it is first asked for, and its videos."""
    data = tmp_path_factory.mktemp("demo") / "data"

    @cache
    def demo(*words: str) -> tuple[Path, Path]:
        if not data.exists():
            make_demo(data)
        folder = tmp_path_factory.mktemp("run")
        train(vivit_train.compose(f"data.root={data}", "trainer=cpu", *words, run_dir=folder))
        return folder, data

    return demo
