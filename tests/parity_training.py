"""How far 200 training steps of train.py are from the authors' loop, which goldens/training/make.py simulated.

To write the draws of train.py anew, before make.py: PYTHONPATH=tests .venv/bin/python tests/parity_training.py
"""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
import toy_training as toy
from numpy.typing import NDArray

import vivit_train
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.sampler import GlobalBatchSampler
from vivit_train.data.transforms import mix_batch, mix_seed
from vivit_train.models.weights.flax_file import write_flax

FILE = Path(__file__).parent / "goldens/training/losses.npz"
STEPS_PER_EPOCH = toy.VIDEOS // toy.BATCH
SETTINGS = [
    "data=folder",
    "recipe=none",
    "optimizer=sgd",
    f"optimizer.lr={toy.LR}",
    f"optimizer.momentum={toy.MOMENTUM}",
    "scheduler=cosine",
    f"scheduler.warmup_epochs={toy.WARMUP_STEPS / STEPS_PER_EPOCH}",
    f"loss.label_smoothing={toy.SMOOTHING}",
    f"mixup={toy.MIXUP}",
    f"global_batch_size={toy.BATCH}",
    f"trainer.max_epochs={toy.EPOCHS}",
    f"trainer.gradient_clip_val={toy.CLIP}",
    f"trainer.check_val_every_n_epoch={toy.EPOCHS}",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "callbacks.contact_sheet=null",
    *(f"model.{name}={value}" for name, value in (("size", "Ti"), ("dim", toy.DIM), ("depth", toy.DEPTH))),
    *(f"model.{name}={value}" for name, value in (("heads", toy.HEADS), ("mlp_dim", toy.MLP))),
    f"model.tubelet={list(toy.TUBELET)}".replace(" ", ""),
    *(f"data.{name}={value}" for name, value in (("frames", toy.FRAMES), ("stride", 1), ("num_workers", 0))),
    *(f"data.{name}={toy.SIDE}" for name in ("short_side", "crop")),
    *("data.scale_jitter=null", "data.flip=0", "data.color_jitter=0"),
]


def write_videos(root: Path) -> None:
    """Writes the toy clips as folders of PNG pictures, which lose nothing."""
    for split, videos in (("train", range(toy.VIDEOS)), ("val", range(toy.CLASSES))):
        for video in videos:
            folder = root / split / f"class_{video % toy.CLASSES}" / f"{video:02}"
            folder.mkdir(parents=True)
            for number, picture in enumerate(toy.clip(video)):
                encoder = av.CodecContext.create("png", "w")
                encoder.width, encoder.height, encoder.pix_fmt = toy.SIDE, toy.SIDE, "rgb24"
                (packet,) = encoder.encode(av.VideoFrame.from_ndarray(picture, "rgb24"))
                (folder / f"{number}.png").write_bytes(bytes(packet))


def draws(root: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns what train.py draws from seed 0: the videos of each step, [steps, 2], and the first one's share."""
    videos = [int(Path(path).name) for path in read_folder(root).train.paths]
    sampler = GlobalBatchSampler(toy.VIDEOS, toy.BATCH, toy.BATCH, 0, 1, seed=0)
    order, shares = [], []
    for epoch in range(toy.EPOCHS):
        sampler.set_epoch(epoch)
        for step, keys in enumerate(sampler):
            order.append([videos[row] for _, _, row in keys])
            torch.manual_seed(mix_seed(0, epoch, step, 0))
            _, target = mix_batch(torch.zeros(2, 1, 3, 1, 1), torch.tensor([[0], [1]]), [2], toy.MIXUP, 0)
            shares.append(float(target[0, 0]))
    return np.array(order), np.array(shares)


def losses(model: str, precision: str, steps: int, folder: Path) -> NDArray[np.float64]:
    """Returns the losses of the first steps of a run of `vivit_train.train` in an empty folder."""
    write_videos(folder / "videos")
    weights = {
        "optimizer": {"target": toy.tree({k: v.astype(np.float32) for k, v in toy.parameters(model).items()})}
    }
    write_flax(folder / "checkpoint_0", weights)
    words = [f"model={model}", f"data.root={folder}/videos", f"init.path={folder}/checkpoint_0"]
    words += [f"model.temporal_depth={toy.TEMPORAL_DEPTH}"] if model == "vivit_fe" else []
    words += [f"trainer.precision={precision}", f"trainer.max_steps={steps}"]
    vivit_train.train(vivit_train.compose(*SETTINGS, *words, run_dir=folder / "run"))
    with (folder / "run/metrics.csv").open(newline="") as file:
        found = [float(row["train/loss_step"]) for row in csv.DictReader(file) if row.get("train/loss_step")]
    assert len(found) == steps
    return np.array(found)


def golden() -> dict[str, NDArray[np.float64]]:
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def in_new_folder(model: str, precision: str, steps: int = toy.STEPS) -> NDArray[np.float64]:
    with TemporaryDirectory() as folder:
        return losses(model, precision, steps, Path(folder))


def main() -> None:
    with TemporaryDirectory() as folder:
        write_videos(Path(folder))
        order, shares = draws(Path(folder))
    np.savez_compressed(FILE, order=order, shares=shares)
    print(f"written: {FILE}; now goldens/training/make.py")


if __name__ == "__main__":
    main()
