"""Which samples make a step, what a sample is, and how videos that cannot be read count. On real mp4 files."""

import csv
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from videos import h264, read_number

from vivit_train.data import dataset, sampling
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalDataset, EvalProtocol, TrainDataset, collate, to_torch
from vivit_train.data.sampler import GlobalBatchSampler, Key, split_batch, steps_per_epoch
from vivit_train.data.sampling import Sampling
from vivit_train.data.transforms import TrainTransform, crop_views
from vivit_train.data.video.decode import read_frames
from vivit_train.models.vivit import ViViT
from vivit_train.training.bad_video_budget import BadVideoBudget
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.errors import UserError

FRAMES, SIDE = 40, 96  # of the videos here, at 30 frames a second


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square video, so that the centre crop shows each frame's number."""
    path = tmp_path_factory.mktemp("square") / "video.mp4"
    h264(path, frames=FRAMES, size=(SIDE, SIDE))
    return path


@pytest.fixture(scope="module")
def wide_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "video.mp4"
    h264(path, frames=FRAMES, size=(160, SIDE))
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all")
    return path


def manifest(*paths: Path) -> ClipTable:
    """Clip i is of class i."""
    names = np.array([str(path) for path in paths])
    return ClipTable(paths=names, labels=np.arange(len(paths))[:, None], ids=names)


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """Takes what `Sampling` is made of out of the settings."""
    names = ("frames", "stride", "fps", "kind", "padding")
    return Sampling(**{"frames": 8} | {name: settings.pop(name) for name in names if name in settings})


WHOLE = TrainTransform(SIDE, SIDE, "keep_ratio", None, 0, 0, None)


def train_clips(*paths: Path, transform: TrainTransform = WHOLE, **kwargs: Any) -> TrainDataset:
    sampling = sampling_of(kwargs)
    return TrainDataset(manifest(*paths), transform, sampling, **{"short_side": SIDE, "seed": 0} | kwargs)


def videos_to_test(*paths: Path, **kwargs: Any) -> EvalDataset:
    sampling = sampling_of(kwargs)
    return EvalDataset(manifest(*paths), sampling, **{"short_side": SIDE, "crop": SIDE} | kwargs)


def numbers(video_TCHW: Tensor) -> list[int]:
    return [read_number(frame) for frame in video_TCHW.permute(0, 2, 3, 1).numpy()]


# which samples make a step


def batches(
    n: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    epoch: int = 0,
) -> list[list[Key]]:
    sampler = GlobalBatchSampler(n, global_batch_size, micro_batch_size, rank, world_size, seed)
    sampler.set_epoch(epoch)
    result = list(sampler)
    assert len(result) == len(sampler)
    assert all(len(batch) == micro_batch_size for batch in result)
    return result


@pytest.mark.parametrize(
    ("n", "global_batch_size", "micro_batch_size"), [(24, 8, 8), (24, 8, 2), (24, 24, 3), (7, 1, 1)]
)
def test_an_epoch_takes_every_clip_once(n: int, global_batch_size: int, micro_batch_size: int) -> None:
    keys = [key for batch in batches(n, global_batch_size, micro_batch_size, epoch=3) for key in batch]
    assert sorted(keys) == [(3, 0, row) for row in range(n)]
    assert keys != sorted(keys)


def test_clips_that_do_not_fill_a_step_wait_for_another_epoch() -> None:
    assert steps_per_epoch(27, 8) == 3
    epochs = [{row for batch in batches(27, 8, 4, epoch=epoch) for _, _, row in batch} for epoch in range(8)]
    assert {len(rows) for rows in epochs} == {24}  # each once
    assert set.union(*epochs) == set(range(27))  # and not the same ones left out for ever


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_a_step_takes_the_same_clips_on_any_number_of_devices(world_size: int, micro_batch_size: int) -> None:
    alone = batches(50, 8, 8)
    ranks = [batches(50, 8, micro_batch_size, rank, world_size) for rank in range(world_size)]
    accumulated = 8 // (micro_batch_size * world_size)
    assert len({len(rank) for rank in ranks}) == 1
    for step, keys in enumerate(alone):
        micro = slice(step * accumulated, (step + 1) * accumulated)
        together = [key for rank in ranks for batch in rank[micro] for key in batch]
        assert sorted(together) == sorted(keys)


def test_two_devices_share_the_batch_of_one() -> None:
    one = batches(32, 16, 4)
    two = zip(batches(32, 16, 2, 0, 2), batches(32, 16, 2, 1, 2), strict=True)
    assert [first + second for first, second in two] == one


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert batches(24, 8, 4, seed=1, epoch=2) == batches(24, 8, 4, seed=1, epoch=2)
    orders = [
        [row for batch in batches(24, 8, 4, seed=seed, epoch=epoch) for _, _, row in batch]
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize(("n", "times"), [(5, {3, 4}), (8, {2}), (1, {16}), (15, {1, 2})])
def test_a_set_smaller_than_the_batch_comes_round_with_other_draws(n: int, times: set[int]) -> None:
    (keys,) = batches(n, 16, 16)
    assert len(set(keys)) == 16  # no key twice: other draws
    assert {sum(row == wanted for _, _, row in keys) for wanted in range(n)} == times


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("at_most", [1, 3, 8, 100])
def test_the_global_batch_is_divided_exactly(devices: int, at_most: int) -> None:
    micro_batch_size, accumulation = split_batch(48, at_most, devices)
    assert micro_batch_size <= at_most
    assert micro_batch_size * devices * accumulation == 48
    larger = range(micro_batch_size + 1, at_most + 1)
    assert not any(48 % (micro * devices) == 0 for micro in larger)


def test_rare_classes_come_more_often_where_asked() -> None:
    weights = 1 / np.array([90.0] * 90 + [10.0] * 10)  # as `weights` makes them for two classes of 90 and 10
    sampler = GlobalBatchSampler(100, 20, 5, 0, 1, 0, weights)
    rows = [row for epoch in range(40) for _, row in epoch_of(sampler, epoch)]
    assert len(rows) == 40 * 100
    assert 0.45 < np.mean(np.array(rows) >= 90) < 0.55
    keys = epoch_of(sampler, 3)
    assert len(set(keys)) == 100  # a video that comes again has other draws
    assert keys == epoch_of(sampler, 3) != epoch_of(sampler, 4)
    ranks = [GlobalBatchSampler(100, 20, 5, rank, 2, 0, weights) for rank in range(2)]
    assert sorted(epoch_of(ranks[0], 3) + epoch_of(ranks[1], 3)) == sorted(keys)


def epoch_of(sampler: GlobalBatchSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return [(repeat, row) for batch in sampler for _, repeat, row in batch]


def test_several_clips_of_a_video_fill_a_step() -> None:
    sampler = GlobalBatchSampler(12, 8, 4, 0, 1, 0, clips_per_video=2)
    assert sampler.steps == 3  # 24 clips
    assert [len(batch) for batch in sampler] == [2] * 6
    assert sorted(row for _, row in epoch_of(sampler, 0)) == list(range(12))


# what a training sample is


def test_training_clips_are_the_frames_they_say(video: Path) -> None:
    dataset = train_clips(video, video)
    first_frames = set()
    for epoch in range(10):
        sample = dataset[epoch, 0, 1]
        shown = sample["frame_numbers"].tolist()
        assert numbers(sample["video"]) == shown
        assert np.diff(shown).tolist() == [2] * 7
        torch.testing.assert_close(
            sample["times_s"], sample["frame_numbers"] / 30, atol=1e-6, rtol=0, check_dtype=False
        )
        assert (sample["label"].tolist(), sample["index"], sample["errors"]) == ([1], 1, [])
        assert (sample["video"].shape, sample["video"].dtype) == ((8, 3, SIDE, SIDE), torch.uint8)
        first_frames.add(shown[0])
    assert len(first_frames) > 3


def test_a_clip_in_time_takes_its_stride_from_the_videos_rate(video: Path) -> None:
    shown = train_clips(video, fps=10)[0, 0, 0]["frame_numbers"]
    assert shown.diff().tolist() == [3] * 7


def test_the_same_key_is_the_same_clip_in_any_order_and_process(wide_video: Path) -> None:
    augment = TrainTransform(32, 48, "keep_ratio", (0.9, 1.33), 0.5, 0.8, (2, 3))
    dataset = train_clips(wide_video, wide_video, transform=augment, short_side=48, frames=4)
    keys = [(epoch, repeat, row) for epoch in range(2) for repeat in range(2) for row in range(2)]
    here = {key: dataset[key]["video"] for key in keys}
    assert len({sampling.numpy().tobytes() for sampling in here.values()}) == len(keys)
    backwards: list[Any] = keys[::-1]
    torch.manual_seed(123)
    workers = DataLoader(dataset, batch_size=None, sampler=backwards, num_workers=2)
    for key, sample in zip(backwards, workers, strict=True):
        assert torch.equal(sample["video"], here[key])
    other_seed = train_clips(wide_video, wide_video, transform=augment, short_side=48, frames=4, seed=1)
    assert not torch.equal(other_seed[keys[0]]["video"], here[keys[0]])


def test_a_bad_video_is_replaced_and_reported(video: Path, broken: Path) -> None:
    dataset = train_clips(broken, video, video)
    for epoch in range(5):
        sample = dataset[epoch, 0, 0]
        assert sample["index"] == sample["label"].item() in (1, 2)
        assert numbers(sample["video"]) == sample["frame_numbers"].tolist()
        assert {(row, path) for row, path, _ in sample["errors"]} == {(0, str(broken))}
        assert all(reason for _, _, reason in sample["errors"])
        again = dataset[epoch, 0, 0]
        assert again["index"] == sample["index"]
        assert torch.equal(again["video"], sample["video"])
    assert len({dataset[epoch, 0, 0]["index"] for epoch in range(10)}) == 2
    assert dataset[0, 0, 1]["errors"] == []


def test_where_nothing_can_be_read_the_errors_come_back(broken: Path, video: Path) -> None:
    sample = train_clips(broken)[0, 0, 0]
    assert list(sample) == ["errors"]
    assert sample["errors"][0][:2] == (0, str(broken))
    good = train_clips(video)[0, 0, 0]
    batch = collate([sample, good])
    assert list(batch) == ["errors"]
    assert batch["errors"]


def test_several_clips_come_from_one_opening(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def read(path: str, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return read_frames(path, *args, **kwargs)

    monkeypatch.setattr(dataset, "read_frames", read)
    clips = train_clips(video, video, clips_per_video=3).__getitems__([(0, 0, 0), (0, 0, 1)])
    assert len(clips) == 6
    assert len(opened) == 2
    assert all(numbers(sample["video"]) == sample["frame_numbers"].tolist() for sample in clips)
    assert len({sample["frame_numbers"][0].item() for sample in clips}) > 2
    assert [sample["index"] for sample in clips] == [0, 0, 0, 1, 1, 1]
    alone = train_clips(video)[0, 0, 0]
    assert torch.equal(train_clips(video).__getitems__([(0, 0, 0)])[0]["video"], alone["video"])


@pytest.mark.parametrize("clips_per_video", [1, 3])
def test_what_no_clip_shows_need_not_be_read(
    clips_per_video: int, wide_video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoom = TrainTransform(32, SIDE, "keep_ratio", (1.5, 3.0), 0.5, 0.0, None)

    def clips() -> list[Tensor]:
        made = train_clips(wide_video, transform=zoom, clips_per_video=clips_per_video)
        return [sample["video"] for epoch in range(4) for sample in made.clips((epoch, 0, 0))]

    boxes = clips()
    height, width = read_frames(wide_video, [0], short_side=SIDE).shape[1:3]
    monkeypatch.setattr(dataset, "union_box", lambda all_params: (0, 0, height, width))
    assert all(map(torch.equal, boxes, clips()))


def test_segments_spread_over_the_whole_video(video: Path) -> None:
    sample = train_clips(video, kind="segments")[0, 0, 0]
    shown = numbers(sample["video"])
    assert [frame // 5 for frame in shown] == list(range(8))  # 40 frames in 8 segments
    assert len({tuple(numbers(train_clips(video, kind="segments")[i, 0, 0]["video"])) for i in range(5)}) == 5
    views = videos_to_test(video, kind="segments", views=(2, 1))[0]["video"]
    assert [numbers(view) for view in views] == [list(range(1, 40, 5)), list(range(3, 40, 5))]


def test_short_videos_may_stand_still(tmp_path: Path) -> None:
    h264(tmp_path / "short.mp4", frames=5, size=(SIDE, SIDE))
    sample = train_clips(tmp_path / "short.mp4", padding="repeat_last")[0, 0, 0]
    assert numbers(sample["video"]) == [0, 2, 4, 4, 4, 4, 4, 4]


def test_short_videos_may_be_padded_with_black(tmp_path: Path) -> None:
    h264(tmp_path / "short.mp4", frames=5, size=(SIDE, SIDE))
    sample = train_clips(tmp_path / "short.mp4", padding="black")[0, 0, 0]
    assert sample["frame_numbers"].tolist() == [0, 2, 4, -1, -1, -1, -1, -1]
    assert numbers(sample["video"][:3]) == [0, 2, 4]
    assert sample["video"][3:].max() == 0
    assert sample["times_s"].isnan().tolist() == [False] * 3 + [True] * 5
    (view,) = videos_to_test(tmp_path / "short.mp4", padding="black", order="reversed")[0]["video"]
    assert view[:5].max() == 0
    assert numbers(view[5:]) == [4, 2, 0]


def test_a_flipped_clip_has_its_mirrored_label(video: Path) -> None:
    flip = TrainTransform(SIDE, SIDE, "keep_ratio", None, 0.5, 0, None)
    mirrored = [np.array([1, 0, 2])]
    dataset = train_clips(video, video, video, transform=flip, mirrored=mirrored)
    labels = [[int(dataset[epoch, 0, row]["label"]) for epoch in range(12)] for row in range(3)]
    assert [set(found) for found in labels] == [{0, 1}, {0, 1}, {2}]
    plain = train_clips(video, video, video, transform=flip)
    assert {int(plain[epoch, 0, 0]["label"]) for epoch in range(12)} == {0}
    assert videos_to_test(video)[0]["label"].tolist() == [0]


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_clip_of_a_longer_video_stays_in_its_span(video: Path, side: str) -> None:
    spans = np.array([[0.0, 0.4], [0.5, 1.1], [1.3, 9.0], [7.0, 8.0]])  # the video shows 40 frames in 1.33 s
    expected = [range(12), range(15, 33), range(39, 40)]
    table = ClipTable(np.array([str(video)] * 4), np.zeros((4, 1), np.int64), np.array(list("abcd")), spans)
    sampling = Sampling(frames=4, stride=1)
    clips = TrainDataset(table, WHOLE, sampling, short_side=SIDE, seed=0)
    videos = EvalDataset(table, sampling, short_side=SIDE, crop=SIDE, views=(3, 1))
    for row, frames in enumerate(expected):
        seen = []
        if side == "train":
            for epoch in range(20):
                sample = clips[epoch, 0, row]
                assert sample["frame_numbers"].tolist() == numbers(sample["video"])
                seen += numbers(sample["video"])
        else:
            for view in videos[row]["video"]:
                seen += numbers(view)
        assert set(seen) <= set(frames)
        assert len(set(seen)) >= len(frames) / 2
        if side == "test":  # its views reach both ends
            assert (min(seen), max(seen)) == (frames[0], frames[-1])
    errors = (clips[0, 0, 3] if side == "train" else videos[3])["errors"]
    assert "shows no frame from 7.00 s to 8.00 s; its last one is at 1.30 s" in errors[0][2]


# what a test sample is


def test_views_are_temporal_clips_times_spatial_crops(wide_video: Path) -> None:
    sample = videos_to_test(wide_video, views=(4, 3), short_side=48, crop=32)[0]
    assert (sample["video"].shape, sample["video"].dtype) == ((12, 8, 3, 32, 32), torch.uint8)
    expected = []
    for indices in sampling.uniform_clips(FRAMES, 8, 2.0, 4):
        alone = to_torch(read_frames(wide_video, indices, short_side=48))
        expected += crop_views(alone, 32, 48, False, 3)
    assert torch.equal(sample["video"], torch.stack(expected))
    assert len({view.numpy().tobytes() for view in expected[:3]}) == 3
    assert (sample["failed"], sample["errors"]) == (False, [])


def test_one_view_is_the_centre_clip(video: Path) -> None:
    sample = videos_to_test(video, video)[1]
    assert [numbers(view) for view in sample["video"]] == [sampling.center_clip(FRAMES, 8, 2.0).tolist()]
    assert (sample["label"].tolist(), sample["index"]) == ([1], 1)


def test_frames_can_be_put_in_another_order(video: Path) -> None:
    clips = [indices.tolist() for indices in sampling.uniform_clips(FRAMES, 8, 2.0, 3)]

    def shown(**kwargs: Any) -> list[list[int]]:
        return [numbers(view) for view in videos_to_test(video, video, views=(3, 1), **kwargs)[0]["video"]]

    assert shown(order="forward") == clips
    assert shown(order="reversed") == [indices[::-1] for indices in clips]
    shuffled = shown(order="shuffled")
    assert shuffled != clips
    assert [sorted(indices) for indices in shuffled] == clips
    assert shown(order="shuffled") == shuffled
    assert shown(order="shuffled", seed=1) != shuffled


def test_a_video_shorter_than_the_clip_loops(tmp_path: Path) -> None:
    h264(tmp_path / "short.mp4", frames=5, size=(SIDE, SIDE))
    views = videos_to_test(tmp_path / "short.mp4", views=(2, 1))[0]["video"]
    assert [numbers(view) for view in views] == [[0, 2, 4, 1, 3, 0, 2, 4]] * 2
    sample = train_clips(tmp_path / "short.mp4")[0, 0, 0]
    assert numbers(sample["video"]) == [0, 2, 4, 1, 3, 0, 2, 4]


def test_a_bad_test_video_stays_a_row_that_failed(video: Path, broken: Path) -> None:
    dataset = videos_to_test(broken, video, views=(2, 3), crop=64)
    sample = dataset[0]
    assert sample["failed"] is True
    assert (sample["label"].tolist(), sample["index"]) == ([0], 0)
    assert sample["errors"][0][:2] == (0, str(broken))
    assert not sample["video"].any()
    batch = collate([sample, dataset[1]])  # both have one shape
    assert batch["video"].shape == (2, 6, 8, 3, 64, 64)
    assert batch["failed"].tolist() == [True, False]
    assert [error[:2] for error in batch["errors"]] == [(0, str(broken))]


# a whole training


@pytest.fixture
def folder(tmp_path: Path, video: Path) -> Path:
    """8 training and 4 validation videos of two classes."""
    for split, count in (("train", 4), ("val", 2)):
        for name in ("down", "up"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                shutil.copyfile(video, tmp_path / split / name / f"{i}.mp4")
    return tmp_path


def fit(folder: Path, **kwargs: Any) -> tuple[VideoDataModule, dict[str, float]]:
    settings: dict[str, Any] = {
        "frames": 4,
        "short_side": 48,
        "crop": 32,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "num_workers": 0,
        "bad_videos_file": folder / "bad_videos.csv",
    }
    data = VideoDataModule("test", str(folder), read_folder, **settings | kwargs)
    net = ViViT("vivit_fe", num_classes=2, frames=4, image_size=32, dim=16, depth=1, heads=2, temporal_depth=1)
    task = VideoClassifier(net, {"": ["down", "up"]}, [0.5] * 3, [0.5] * 3)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        accumulate_grad_batches=data.global_batch_size // data.micro_batch_size,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[BadVideoBudget()],
    )
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2 * data.steps_per_epoch
    return data, {name: float(value) for name, value in trainer.callback_metrics.items()}


def bad_rows(folder: Path) -> list[list[str]]:
    with (folder / "bad_videos.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_good_videos_train_and_leave_no_list_of_bad_ones(folder: Path) -> None:
    data, metrics = fit(folder)
    assert data.bad_videos.known == {"train": {}, "val": {}, "test": {}}
    assert not data.bad_videos.file.exists()
    assert (metrics["val/n"], metrics["val/failed"]) == (4, 0)


AUGMENTED = {"scale_jitter": (0.9, 1.33), "color_jitter": 0.8, "randaugment": (2, 15), "random_erasing": 0.5}


def batches_of(folder: Path, device: str, **kwargs: Any) -> list[Any]:
    """The training batches of two epochs, as the model gets them."""
    data = VideoDataModule(
        "test",
        str(folder),
        read_folder,
        frames=4,
        short_side=48,
        crop=32,
        global_batch_size=4,
        micro_batch_size=4,
        **AUGMENTED,
        **kwargs,
    )
    loader = data.train_dataloader()
    batches = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            sent = {name: value.to(device) if name == "video" else value for name, value in batch.items()}
            batches.append(data.on_after_batch_transfer(data.on_before_batch_transfer(sent, 0), 0))
    return batches


@pytest.mark.parametrize(("num_workers", "clips_per_video"), [(0, 1), (2, 2)])
def test_clips_are_the_same_wherever_they_are_augmented(
    folder: Path, num_workers: int, clips_per_video: int
) -> None:
    settings = {"num_workers": num_workers, "clips_per_video": clips_per_video}
    here = batches_of(folder, "cpu", augment_on="worker", num_workers=0, clips_per_video=clips_per_video)
    there = batches_of(folder, "cpu", augment_on="device", **settings)
    assert len(here) == len(there) == 4 * clips_per_video
    for one, other in zip(here, there, strict=True):
        assert sorted(one) == sorted(other)
        assert one["video"].shape == (4, 4, 3, 32, 32)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_may_augment_on_the_device(folder: Path) -> None:
    losses = []
    for where in ("worker", "device"):
        torch.manual_seed(0)
        losses.append(fit(folder, augment_on=where, **AUGMENTED)[1]["train/loss_epoch"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_over_its_budget_of_bad_videos_stops_and_names_one(folder: Path, num_workers: int) -> None:
    path = folder / "train" / "up" / "1.mp4"
    path.write_bytes(b"no video at all")
    with pytest.raises(UserError, match=r"1 of 8 training videos .* data\.max_bad_fraction is 0\.1\.") as stop:
        fit(folder, max_bad_fraction=0.1, num_workers=num_workers)
    assert str(path) in str(stop.value)
    assert [row[:2] for row in bad_rows(folder)] == [["split", "path"], ["train", str(path)]]


def test_bad_videos_within_the_budget_are_listed_once_and_wrong_in_validation(folder: Path) -> None:
    paths = [folder / "train" / "up" / "1.mp4", folder / "val" / "down" / "0.mp4"]
    for path in paths:
        path.write_bytes(b"no video at all")
    data, metrics = fit(folder, max_bad_fraction=0.2)  # two epochs
    assert sorted(row[:2] for row in bad_rows(folder)[1:]) == [["train", str(paths[0])], ["val", str(paths[1])]]
    assert (len(data.bad_videos.known["train"]), len(data.bad_videos.known["val"])) == (1, 1)
    assert (metrics["val/n"], metrics["val/failed"]) == (4, 1)


def test_training_without_any_readable_video_stops_whatever_the_budget(folder: Path) -> None:
    for path in (folder / "train").glob("*/*.mp4"):
        path.write_bytes(b"no video at all")
    with pytest.raises(UserError, match="training videos cannot be read"):
        fit(folder, max_bad_fraction=1.0)


def test_flips_that_would_turn_left_into_right_are_pointed_out(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split / "up").rename(folder / split / "go right")
        (folder / split / "down").rename(folder / split / "go left")

    def data(**kwargs: Any) -> VideoDataModule:
        return VideoDataModule("test", str(folder), read_folder, **kwargs)

    notice = data().flip_notice()
    assert notice is not None
    assert "'go left' look like 'go right'; set data.mirror_labels=true" in notice
    assert data(flip=0.0).flip_notice() is None
    assert data(mirror_labels=True).flip_notice() is None
    mirrored = data(mirror_labels=True).mirrored
    assert mirrored is not None
    assert [ids.tolist() for ids in mirrored] == [[1, 0]]
    assert data().mirrored is None


def test_classes_can_be_limited_and_balanced(folder: Path) -> None:
    for i in range(2):
        (folder / f"train/up/{i}.mp4").unlink()  # 4 of "down", 2 of "up"
    data = VideoDataModule("test", str(folder), read_folder, balance="class")
    weights = data.weights()
    assert weights is not None
    assert weights.tolist() == [0.25] * 4 + [0.5] * 2
    data = VideoDataModule("test", str(folder), read_folder, limit_per_class=2)
    assert data.splits.train.labels[:, 0].tolist() == [0, 0, 1, 1]
    assert "train is limited to 2 clips per class: 4 of 6" in data.splits.summary()
    assert data.weights() is None
    with pytest.raises(UserError, match=r"data\.clips_per_video=3 must divide the 64 clips"):
        split_batch(64, 8, 1, clips_per_video=3)
    assert split_batch(64, 10, 2, clips_per_video=4) == (8, 4)
    with pytest.raises(UserError, match="global_batch_size=64 is not divisible by 3 devices"):
        split_batch(64, 8, 3)


def test_a_split_that_is_not_there_is_named(folder: Path) -> None:
    data = VideoDataModule("test", str(folder), read_folder, protocol=EvalProtocol("test"))
    with pytest.raises(UserError, match="data 'test' has no test split"):
        data.test_dataloader()


def test_a_test_evaluates_val_if_the_data_have_no_test_split(folder: Path, videos: Path) -> None:
    assert VideoDataModule("test", str(folder), read_folder).test_split == "val"
    assert VideoDataModule("test", str(videos), read_folder, test="auto").test_split == "test"
    assert VideoDataModule("test", str(videos), read_folder, protocol=EvalProtocol("train")).test_split == "train"


def test_data_know_whether_a_test_evaluates_the_clips_that_choose_the_checkpoint(
    folder: Path, videos: Path
) -> None:
    def chosen(root: Path, **options: Any) -> bool:
        return VideoDataModule("test", str(root), read_folder, **options).chosen_on_test_clips

    assert chosen(folder)  # There is no test split, so val is evaluated.
    assert not chosen(videos, test="auto")
    assert chosen(videos, val="test", test="auto")
    assert chosen(videos, test=None)
    other_data = partial(read_folder, classes=sorted(path.name for path in (videos / "val").iterdir()))
    assert not VideoDataModule("test", str(videos), other_data).chosen_on_test_clips


@pytest.mark.parametrize(
    ("videos_there", "micro_batch_size", "sizes"), [(16, 8, [8, 8]), (16, 5, [4] * 4), (16, 3, [3] * 4 + [2] * 2)]
)
def test_no_batch_of_an_evaluation_is_much_smaller_than_the_others(
    videos_there: int, micro_batch_size: int, sizes: list[int], videos: Path
) -> None:
    data = VideoDataModule(
        "folder",
        str(videos),
        read_folder,
        test="auto",
        frames=4,
        short_side=36,
        crop=32,
        micro_batch_size=micro_batch_size,
        num_workers=0,
    )
    batches = list(data.test_dataloader())
    assert [len(batch["index"]) for batch in batches] == sizes
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(videos_there))
