"""Measures how fast clips are read, beside what libavcodec, decord and pytorchvideo can do: docs/benchmarks.md.

make bench, or: python benchmarks/speed.py [--rounds 5] [--clips 4]

Makes videos of ten seconds, 300 frames of moving textures, two of each kind. A clip is 32 frames at stride 2 as
training draws them, RGB, short side 256. One thread; what is compared takes turns within each round, and of each
clip the best round counts. Timings fail nothing; a bar that is missed stands in bold.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import TrainDataset, collate
from vivit_train.data.video import index, storage
from vivit_train.data.video.decode import import_decoder, read_frames
from vivit_train.data.video.scan import packed_scan, probe, timeline
from vivit_train.tools.encode import Settings, encode

FRAMES, STRIDE, SHORT_SIDE, SECONDS, RATE = 32, 2, 256, 10, 30
SCENES = 2
SLOW = "1280x720, GOP 250"
PREPARED = "the same, after `vivit prepare`"


@dataclass(frozen=True)
class Kind:
    suffix: str
    codec: str
    size: tuple[int, int]
    gop: int
    options: dict[str, str]


X264 = {"preset": "medium", "crf": "23"}
KINDS = {
    "340x256, GOP 12": Kind("mp4", "libx264", (340, 256), 12, X264),
    "340x256, GOP 32": Kind("mp4", "libx264", (340, 256), 32, X264),
    "340x256, GOP 250": Kind("mp4", "libx264", (340, 256), 250, X264),
    "568x320, GOP 250": Kind("mp4", "libx264", (568, 320), 250, X264),
    "1280x720, GOP 32": Kind("mp4", "libx264", (1280, 720), 32, X264),
    SLOW: Kind("mp4", "libx264", (1280, 720), 250, X264),
    "426x240, VP9": Kind("webm", "libvpx-vp9", (426, 240), 128, {"crf": "33", "b": "0", "cpu-used": "5"}),
    "320x240, MPEG-4": Kind("avi", "mpeg4", (320, 240), 12, {"b": "1200000"}),
}

BARS = {  # what, of what: at least so much
    ("ours", "libavcodec alone"): 0.90,
    ("ours, stored by the doctor", "libavcodec alone"): 0.90,
    ("ours, probed before", "libavcodec alone"): 0.90,
    ("ours by decord", "decord alone"): 0.95,
    ("ours by decord, probed before", "decord alone"): 0.95,
    ("ours and augmented", "ours"): 0.80,
}
PTV_BARS = {"340x256, GOP 250": 2.4, "340x256, GOP 12": 3.5}
PREPARE_BAR = 8


# The videos.


def scene(seed: int, width: int = 1280, height: int = 720) -> Iterator[NDArray[np.uint8]]:
    """Frames [height, width, 3]: textured discs fly over a texture that the camera pans along, with noise."""
    draw = np.random.default_rng(seed)

    def texture(h: int, w: int) -> NDArray[np.uint8]:
        total = np.zeros((h, w, 3))
        for octave in range(7):
            cells = -(-h * 2**octave // 256) + 2, -(-w * 2**octave // 256) + 2, 3
            grid = np.clip(draw.normal(128, (40, 20, 20), cells), 0, 255).astype(np.uint8)
            smooth = av.VideoFrame.from_ndarray(grid, "rgb24").reformat(w, h, interpolation="BICUBIC")
            total += 0.8**octave * (smooth.to_ndarray().astype(float) - 128)
        return np.clip(128 + 0.8 * total, 0, 255).astype(np.uint8)

    def bounce(start: float, speed: float, frame: int, end: int) -> int:
        return int(abs((start + speed * frame + end) % (2 * end) - end))

    background, noise = texture(height + 280, width + 620), draw.normal(0, 3, (height + 40, width + 60, 1))
    pan = draw.uniform((0.5, 1.0), (1.25, 2.5))
    discs = [texture(side, side) for side in draw.integers(120, 300, 4)]
    starts, speeds = draw.uniform(0, 900, (4, 2)), draw.uniform(-6, 6, (4, 2))
    for t in range(SECONDS * RATE):
        y, x = bounce(0, pan[0], t, 280), bounce(0, pan[1], t, 620)
        picture = background[y : y + height, x : x + width].astype(np.float32)
        for disc, start, speed in zip(discs, starts, speeds, strict=True):
            side = len(disc)
            y, x = (
                bounce(*move, t, end)
                for *move, end in zip(start, speed, (height - side, width - side), strict=True)
            )
            inside = np.hypot(*(np.mgrid[:side, :side] - side / 2)) < side / 2
            picture[y : y + side, x : x + side][inside] = disc[inside]
        y, x = draw.integers(0, 40, 2)
        yield np.clip(picture + noise[y : y + height, x : x + width], 0, 255).astype(np.uint8)


def make_videos(folder: Path) -> dict[str, list[str]]:
    """Paths by kind. What is there is not made again."""
    made: dict[str, list[str]] = defaultdict(list)
    for seed in range(SCENES):
        for number, (name, kind) in enumerate(KINDS.items()):
            made[name].append(str(folder / f"{seed}_{number}.{kind.suffix}"))
        if (folder / f"{seed}.made").exists():
            continue
        pictures = [av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p") for frame in scene(seed)]
        for name, kind in KINDS.items():
            with av.open(made[name][seed], "w") as out:
                stream: Any = out.add_stream(kind.codec, rate=RATE, options=kind.options)
                stream.width, stream.height = kind.size
                stream.pix_fmt = "yuv420p"
                stream.codec_context.gop_size = kind.gop
                for i, picture in enumerate(pictures):
                    frame = picture.reformat(*kind.size, interpolation="BICUBIC")
                    frame.pts, frame.time_base = i, Fraction(1, RATE)
                    out.mux(stream.encode(frame))
                out.mux(stream.encode(None))
        (folder / f"{seed}.made").touch()
    return made


# What is compared. Each is given a path, the numbers of a clip's frames and their size.

_aliases = count(1)


def unseen(path: str) -> str:
    """The path, spelled as never before: the file is probed anew, as in a data set too large to remember."""
    return "/" + f"{next(_aliases):b}".replace("0", ".//").replace("1", "./") + os.path.abspath(path)


def size_of(path: str) -> tuple[int, int]:
    """Width and height at the short side."""
    info = probe(path)
    shrink = min(1.0, SHORT_SIDE / min(info.width, info.height))
    return round(info.width * shrink), round(info.height * shrink)


def alone(path: str, clip: NDArray[np.int64], clocks: "Clocks") -> None:
    """libavcodec's limit: from the key frame before the clip to its last frame, of which the clip's are converted.
    The file is open already, and where frames are is known."""
    size = size_of(path)
    with av.open(path) as container:
        stream = container.streams.video[0]
        times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        wanted, last = {times[i] for i in clip}, times[clip[-1]]
        stream.codec_context.thread_count = 1
        container.seek(times[clip[0]], stream=stream)
        scale = partial(VideoReformatter().reformat, width=size[0], height=size[1], format="rgb24", threads=1)
        with clocks:
            for frame in container.decode(stream):
                if frame.pts in wanted:
                    scale(frame, interpolation="BICUBIC")
                if frame.pts is not None and frame.pts >= last:
                    break


def decord_alone(path: str, clip: NDArray[np.int64], clocks: "Clocks") -> None:
    import decord

    size = size_of(path)
    with clocks:
        decord.VideoReader(path, decord.cpu(0), *size, num_threads=1).get_batch(clip).asnumpy()


def pytorchvideo_alone(path: str, clip: NDArray[np.int64], clocks: "Clocks") -> None:
    """Its clip of the same time, then what its UniformTemporalSubsample does, and the same size and type."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    width, height = size_of(path)
    with clocks:
        video = EncodedVideo.from_path(path, decode_audio=False, decoder="pyav")
        frames_CTHW = video.get_clip(clip[0] / RATE, (clip[0] + FRAMES * STRIDE) / RATE)["video"]
        video.close()
        places = torch.linspace(0, frames_CTHW.shape[1] - 1, FRAMES).long()
        frames_CTHW = frames_CTHW.index_select(1, places)
        if frames_CTHW.shape[2:] != (height, width):
            frames_CTHW = torch.nn.functional.interpolate(frames_CTHW, (height, width), mode="bilinear")
        frames_CTHW.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def ours(
    path: str, clip: NDArray[np.int64], clocks: "Clocks", *, decoder: str = "auto", seen: bool = False
) -> None:
    path = path if seen else unseen(path)
    if seen:
        timeline(path)
    with clocks:
        timeline(path)
        read_frames(path, clip, short_side=SHORT_SIDE, decoder=decoder)


class Stored:
    """As `ours`, of videos in a database like the doctor's, so many times each."""

    def __init__(self, folder: Path, paths: Sequence[str], times: int) -> None:
        self.file = folder / "stored.sqlite"
        self.spellings = {path: [unseen(path) for _ in range(times)] for path in paths}
        found = {path: (*storage.state(path)[:2], packed_scan(path)) for path in paths}
        index.write(self.file, ((name, *found[path]) for path in paths for name in self.spellings[path]))
        index.read(self.file, "", 0, 0)  # a loader process opens it once

    def __call__(self, path: str, clip: NDArray[np.int64], clocks: "Clocks") -> None:
        name = self.spellings[path].pop()
        with clocks:
            timeline(name, self.file)
            read_frames(name, clip, short_side=SHORT_SIDE)


def bench_clip(path: str, start: int, num_frames: int, stride: int, size: int) -> Tensor:
    """A clip as bench_decode.py asks for it: --loader vivit=speed:bench_clip --pythonpath tests."""
    path = unseen(path)
    clip = np.minimum(start + stride * np.arange(num_frames), timeline(path).num_frames - 1)
    return torch.from_numpy(read_frames(path, clip, short_side=size))


def samples(clips: TrainDataset, row: int, draw: int, clocks: "Clocks") -> NDArray[np.int64]:
    """The whole of what a loader's worker does for a clip; returns its frames' numbers."""
    paths = clips.manifest.paths.copy()
    paths[row] = unseen(clips.manifest.paths[row])
    clips.manifest = replace(clips.manifest, paths=paths)
    with clocks:
        batch = collate([clips[0, draw, row]])
    numbers: NDArray[np.int64] = batch["frame_numbers"][0].numpy()
    return numbers


def training_clips(folder: Path, paths: Sequence[str], **augmentation: Any) -> TrainDataset:
    (folder / "train.csv").write_text("".join(f"{path} {label}\n" for label, path in enumerate(paths)))
    data = VideoDataModule(
        "speed",
        str(folder),
        read_csv,
        train="train.csv",
        val="train.csv",
        frames=FRAMES,
        stride=STRIDE,
        short_side=SHORT_SIDE,
        crop=224,
        augment_on="worker",
        **augmentation,
    )
    return data.train_dataset(data.splits.train)


# Measuring.


class Clocks:
    """Seconds on the wall and of the processor, of what is done within it."""

    def __enter__(self) -> None:
        self.begin = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]


Times = dict[
    str, dict[str, tuple[float, float]]
]  # kind -> what -> seconds a clip, on the wall and of the processor


def measure(videos: dict[str, list[str]], folder: Path, clips: int, rounds: int) -> Times:
    paths = [path for paths in videos.values() for path in paths]
    kinds = [kind for kind, paths in videos.items() for _ in paths]
    jitter = {"scale_jitter": (0.9, 1.33), "flip": 0.5}  # of recipe=kinetics400
    augmented = training_clips(folder, paths, **jitter)
    recoloured = training_clips(folder, paths, **jitter, color_jitter=0.8)
    originals = augmented.manifest.paths.tolist()
    rivals: dict[str, Callable[[str, NDArray[np.int64], Clocks], None]] = {
        "libavcodec alone": alone,
        "ours": ours,
        "ours, stored by the doctor": Stored(folder, originals, clips * rounds),
        "ours, probed before": partial(ours, seen=True),
    }
    if find_spec("decord"):
        import_decoder("decord")
        rivals |= {
            "decord alone": decord_alone,
            "ours by decord": partial(ours, decoder="decord"),
            "ours by decord, probed before": partial(ours, decoder="decord", seen=True),
        }
    if find_spec("pytorchvideo"):
        rivals["pytorchvideo"] = pytorchvideo_alone
    best: dict[tuple[int, int, str], tuple[float, float]] = {}
    clocks = Clocks()

    def keep(row: int, draw: int, what: str) -> None:
        before = best.get((row, draw, what), (np.inf, np.inf))
        best[row, draw, what] = min(before[0], clocks.seconds[0]), min(before[1], clocks.seconds[1])

    for turn in range(rounds):
        for row, path in enumerate(originals):
            for draw in range(clips):
                for what, loader in {
                    "ours and augmented": augmented,
                    "the same, with colours": recoloured,
                }.items():
                    numbers = samples(loader, row, draw, clocks)
                    loader.manifest = replace(loader.manifest, paths=np.array(originals, np.dtypes.StringDType()))
                    keep(row, draw, what)
                for what, rival in rivals.items():
                    rival(path, numbers, clocks)
                    keep(row, draw, what)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    times: Times = {kind: {} for kind in videos}
    for kind in videos:
        for what in dict.fromkeys(what for _, _, what in best):
            of_kind = [s for (row, _, name), s in best.items() if name == what and kinds[row] == kind]
            times[kind][what] = statistics.mean(s[0] for s in of_kind), statistics.mean(s[1] for s in of_kind)
    return times


# The page.


def rates(times: Times, clock: int) -> list[str]:
    columns = list(next(iter(times.values())))
    lines = [f"| clips/s | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for kind, row in times.items():
        lines.append(f"| {kind} | {' | '.join(f'{1 / row[what][clock]:.1f}' for what in columns)} |")
    return lines


def ratios(times: Times, clock: int) -> list[str]:
    def shown(value: float, bar: float | None) -> str:
        return f"**{value:.2f}**" if bar and value < bar else f"{value:.2f}"

    have = next(iter(times.values()))
    pairs = {pair: bar for pair, bar in BARS.items() if pair[1] in have}
    heads = [f"{what} / {of} (bar {bar:.2f})" for (what, of), bar in pairs.items()]
    extra = [what for what in ("ours by decord", "pytorchvideo") if what in have]
    heads += [f"ours / {what}" for what in extra]
    lines = [f"| how fast | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for kind, row in times.items():
        cells = [shown(row[of][clock] / row[what][clock], bar) for (what, of), bar in pairs.items()]
        for what in extra:
            bar = PTV_BARS.get(kind) if what == "pytorchvideo" else None
            value = shown(row[what][clock] / row["ours"][clock], bar)
            cells.append(f"{value} (bar {bar})" if bar else value)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    if PREPARED in times:
        gain = times[SLOW]["ours"][clock] / times[PREPARED]["ours"][clock]
        lines += [
            "",
            f"`vivit prepare` of {SLOW}: {shown(gain, PREPARE_BAR)} times as many clips (bar {PREPARE_BAR}).",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=4, help="of each video")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--videos", type=Path, help="folder that keeps the videos for another time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.videos or Path(temporary)).resolve()
        folder.mkdir(exist_ok=True)
        videos = {kind: paths for kind, paths in make_videos(folder).items() if options.only in kind}
        if SLOW in videos:
            videos[PREPARED] = [str(folder / f"prepared_{Path(path).name}") for path in videos[SLOW]]
            for path, prepared in zip(videos[SLOW], videos[PREPARED], strict=True):
                encode(path, prepared, Settings(SHORT_SIDE, 32))
        times = measure(videos, folder, options.clips, options.rounds)
    versions = (
        f"Python {platform.python_version()}, PyAV {av.__version__}, torch {torch.__version__.partition('+')[0]}"
    )
    print(
        f"{versions}; {SCENES} videos of a kind, {options.clips} clips of each, best of {options.rounds} rounds."
    )
    for clock, what in enumerate(("On the wall:", "Processor time:")):
        print("", what, "", *rates(times, clock), "", *ratios(times, clock), sep="\n")


if __name__ == "__main__":
    main()
