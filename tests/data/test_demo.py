import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vivit_train.data import synthetic
from vivit_train.data.synthetic import CLASSES, FORWARD, PARTNER, draw_path, make_demo, render
from vivit_train.utils.errors import UserError

SMALL = {"size": 32, "num_frames": 4, "train_per_class": 1, "val_per_class": 0, "test_per_class": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demo"
    make_demo(root, train_per_class=2, val_per_class=1, test_per_class=8)
    return root


def read(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def measure_motion(video: np.ndarray) -> np.ndarray:
    """Mean motion as seen on screen: right, down, clockwise, growth. Knows nothing of how a video was made.

    Least squares on brightness constancy, `flow . gradient + change = 0`, with an affine flow around the
    centre of what changes. Opposite borders touch, so distances and gradients go round.
    """
    moved, size = [], video.shape[1]

    def from_centre(places: np.ndarray) -> np.ndarray:
        turns = np.exp(2j * np.pi * places / size)
        return np.repeat(np.angle(turns / turns.mean()) * size / (2 * np.pi), 3)  # once per colour

    for a, b in pairwise(video.astype(float)):
        change = b - a
        rows, columns = np.nonzero(np.abs(change).sum(-1) > 24)
        dy, dx = ((np.roll(a + b, -1, axis) - np.roll(a + b, 1, axis)) / 4 for axis in (0, 1))
        gx, gy, g = (image[rows, columns].ravel() for image in (dx, dy, change))
        y, x = from_centre(rows), from_centre(columns)
        # with y down, the flow (-y, x) runs clockwise
        terms = np.stack([gx, gy, gy * x - gx * y, gx * x + gy * y], axis=-1)
        moved.append(np.linalg.lstsq(terms, -g, rcond=None)[0])
    return np.mean(moved, axis=0)


def test_files_are_laid_out_by_split_and_class_and_decode(root):
    assert sorted(p.name for p in root.iterdir()) == [synthetic.MARKER, "test", "train", "val"]
    for split, count in {"train": 2, "val": 1, "test": 8}.items():
        assert sorted(p.name for p in (root / split).iterdir()) == list(CLASSES)
        for label in CLASSES:
            assert len(list((root / split / label).glob("*.mp4"))) == count
    for path in (root / "train").rglob("*.mp4"):
        assert read(path).shape == (24, 56, 56, 3)
    with av.open(root / "val" / "recede" / "0000.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.average_rate, stream.frames) == ("h264", 12, 24)


@pytest.mark.parametrize("label", CLASSES)
def test_motion_on_screen_is_what_the_name_says(root, label):
    column, sign = {
        "move_right": (0, 1), "move_left": (0, -1), "move_down": (1, 1), "move_up": (1, -1),
        "rotate_clockwise": (2, 1), "rotate_counterclockwise": (2, -1), "approach": (3, 1), "recede": (3, -1),
    }[label]  # fmt: skip
    motion = np.stack([measure_motion(read(p)) for p in sorted((root / "test" / label).iterdir())])
    assert (np.sign(motion[:, column]) == sign).all(), motion.round(3)


@pytest.mark.parametrize("label", FORWARD)
def test_each_class_is_its_partner_played_backwards(label):
    assert PARTNER[PARTNER[label]] == label
    for seed in range(3):
        path = draw_path(label, 24, np.random.default_rng(seed))
        back = draw_path(PARTNER[label], 24, np.random.default_rng(seed))
        assert np.array_equal(back, path[::-1])
        video, back_video = (render(p, 56, np.random.default_rng(seed)) for p in (path, back))
        assert np.array_equal(back_video, video[::-1])


@pytest.mark.parametrize(
    "label",
    [pytest.param(label, marks=[pytest.mark.slow] * (i > 0)) for i, label in enumerate(FORWARD)],
)
def test_frames_without_their_order_say_nothing_about_the_class(label):
    def where_the_shape_is(label: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, CLASSES.index(label)])
        video = render(draw_path(label, 12, rng), 24, rng).astype(float)
        return np.abs(np.diff(video, axis=0)).mean(-1).reshape(11, 4, 6, 4, 6).mean((2, 4))  # [time, 4, 4]

    def z_scores(frames: slice) -> np.ndarray:
        a, b = (
            np.stack([where_the_shape_is(name, seed)[frames].mean(0) for seed in range(150)])
            for name in (label, PARTNER[label])
        )
        return np.abs(a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / 150 + 1e-9)

    assert z_scores(slice(None)).max() < 4
    if label == "approach":
        assert z_scores(slice(3)).max() > 6  # an early frame does tell, and the test can see it
    else:
        assert max(z_scores(slice(t, t + 1)).max() for t in range(11)) < 5  # not even with their number


def test_opposite_borders_touch(monkeypatch):
    monkeypatch.setattr(synthetic, "BACKGROUND_CONTRAST", (0.0, 0.0))
    for seed in range(5):
        steps = np.arange(0, 57, 7)
        path = np.stack([0.4 + steps / 56, 0.3 - steps / 56, 0 * steps + 1, 0 * steps - 1], axis=1)
        video = render(path, 56, np.random.default_rng(seed)).astype(int)
        for step, picture in zip(steps, video, strict=True):
            assert np.abs(picture - np.roll(video[0], (-step, step), axis=(0, 1))).max() <= 2


def test_every_shape_is_within_reach():
    angle = np.linspace(-7, 7, 1000, dtype=np.float32)
    radii = np.stack([synthetic.outline(angle, np.random.default_rng(seed)) for seed in range(200)])
    assert 0.4 < radii.min() < radii.max() < synthetic.REACH


def test_a_video_depends_on_seed_split_class_and_number_alone(tmp_path):
    make_demo(tmp_path / "a", **SMALL)
    make_demo(tmp_path / "b", **SMALL | {"train_per_class": 2})
    make_demo(tmp_path / "c", **SMALL, seed=1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    videos = {name for name in a if name.endswith(".mp4")}
    assert len({a[name] for name in videos}) == len(videos) == 16
    assert all(a[name] == b[name] for name in videos)
    assert all(a[name] != c[name] for name in videos)


def test_a_made_demo_is_left_alone(tmp_path, monkeypatch):
    root = tmp_path / "deep" / "demo"
    make_demo(root, **SMALL, fps=12)
    monkeypatch.setattr(synthetic, "render", None)
    make_demo(root, **SMALL, fps=12.0)


def test_a_half_made_demo_is_not_taken_for_whole(tmp_path, monkeypatch):
    root = tmp_path / "demo"

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_video", fail)
        with pytest.raises(OSError, match="disk full"):
            make_demo(root, **SMALL)
    assert list(tmp_path.iterdir()) == []

    (tmp_path / ".demo-killed" / "train").mkdir(parents=True)  # what SIGKILL leaves
    make_demo(root, **SMALL)
    assert len(list(root.rglob("*.mp4"))) == 16

    (root / synthetic.MARKER).unlink()
    with pytest.raises(UserError, match=r"no complete demo .*Delete that folder or choose another data\.root"):
        make_demo(root, **SMALL)


def test_other_parameters_are_refused(tmp_path):
    make_demo(tmp_path / "demo", **SMALL)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r'"seed": 0.* needs .*"seed": 1.*Delete that folder'):
        make_demo(tmp_path / "demo", **SMALL, seed=1)
    assert contents(tmp_path) == before
    with pytest.raises(UserError, match="even"):
        make_demo(tmp_path / "odd", size=33)


def test_several_makers_at_once_end_with_one_whole_demo(tmp_path, monkeypatch):
    barrier = threading.Barrier(2)
    write_text = Path.write_text

    def write_together(path: Path, text: str, **kwargs: Any) -> int:
        barrier.wait(timeout=20)  # both have finished their videos before either renames
        return write_text(path, text, **kwargs)

    monkeypatch.setattr(Path, "write_text", write_together)
    errors = []

    def run() -> None:
        try:
            make_demo(tmp_path / "demo", **SMALL)
        except BaseException as error:
            errors.append(error)

    makers = [threading.Thread(target=run) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert errors == []
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]
    assert len(list((tmp_path / "demo").rglob("*.mp4"))) == 16
