"""Stores features of clips in safetensors files, so that a frozen model sees each clip once."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.digest import state_of
from vivit_train.training.task import VideoTask
from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import StoppedError, UserError, interrupted
from vivit_train.utils.files import check_folder, replacing
from vivit_train.utils.progress import progress
from vivit_train.utils.text import file_stem, plural, printable

log = logging.getLogger(__name__)
SHARD_S = 20.0  # A killed process loses the features of so many seconds, or of so many bytes.
SHARD_BYTES = 1 << 28
ABOUT, CLIPS = "about.json", "clips"


class StoredClip(NamedTuple):
    """What identifies the features of a clip.

    Attributes:
        name: The path of the video, the span of the clip and the view, as text.
        state: The size and the time stamp of the file when its features were computed.
    """

    name: str
    state: tuple[int, ...]


class FeatureStore:
    """A folder of safetensors files ("shards") with the features of clips.

    Each file lists its clips in its header, appears only when it is complete, and never changes. If the file of
    a video has changed since, its features are computed again. Features of other weights or of another
    preprocessing are in another folder.

    Args:
        folder: The folder of all stores of a data set.
        about: What the features depend on, apart from the clips. It is plain data.

    Raises:
        UserError: The folder cannot be written, or holds links that lead outside, pipes or devices.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        text = json.dumps(about, sort_keys=True, indent=1)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        others = [file.parent.name for file in sorted(folder.glob(f"*/{ABOUT}")) if file.parent != self.folder]
        if others and not self.folder.is_dir():
            log.info(
                f"{plural(len(others), 'folder')} of features in {folder} belong to other weights or another "
                "preprocessing and are not used"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_folder(folder, ["", self.folder.name], "delete the folder of features")
            (self.folder / ABOUT).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"features cannot be stored in {folder}: {error.strerror}") from error
        self.places: dict[str, tuple[Path, int, tuple[int, ...]]] = {}
        self.read()

    def read(self) -> None:
        """Reads what each file contains, such as those that other processes have written."""
        for file in sorted(self.folder.glob("*.safetensors"), key=lambda file: (file.stat().st_mtime_ns, file)):
            self.read_header(file)

    def read_header(self, file: Path) -> None:
        """Adds the clips of a file to the index; a damaged file is ignored with a warning."""
        try:
            with safe_open(file, "pt") as shard:
                clips = json.loads((shard.metadata() or {}).get(CLIPS, ""))
                lengths = {shard.get_slice(name).get_shape()[0] for name in sorted(shard.keys())}
            if not conforms(clips, list[tuple[str, list[int]]]) or lengths != {len(clips)}:
                raise ValueError("it does not list its clips")
        except (SafetensorError, OSError, ValueError, IndexError, RecursionError) as error:
            log.warning(f"{file} is ignored, so its features are computed again: {error}")
            return
        self.places |= {name: (file, place, tuple(state)) for place, (name, state) in enumerate(clips)}

    def missing(self, clips: Sequence[StoredClip]) -> list[int]:
        """Returns the positions of the clips whose features are not stored, and says how many are out of date."""
        absent = [i for i, clip in enumerate(clips) if not self.has(clip)]
        stale = [clips[i].name for i in absent if clips[i].name in self.places]
        if stale:
            changed = list(dict.fromkeys(json.loads(name)[0] for name in stale))
            verb = "has" if len(changed) == 1 else "have"
            log.info(
                f"{plural(len(changed), 'video')} {verb} changed since the features were computed (such as "
                f"{printable(changed[0])}): they are computed again"
            )
        return absent

    def add(self, clips: Sequence[StoredClip], features: Mapping[str, Tensor]) -> None:
        """Writes a new file with the features of clips, by name [clips, ...]."""
        names = json.dumps([[clip.name, list(clip.state)] for clip in clips])
        file = self.folder / f"{time.time_ns():020d}_{os.getpid()}.safetensors"
        plain = {name: x.detach().cpu().contiguous() for name, x in features.items()}
        try:
            with replacing(file) as part:
                save_file(plain, part, metadata={CLIPS: names})
        except (OSError, SafetensorError) as error:
            raise UserError(f"features cannot be stored in {self.folder}: {error}") from error
        self.places |= {clip.name: (file, place, clip.state) for place, clip in enumerate(clips)}

    def has(self, clip: StoredClip) -> bool:
        """Returns whether the features of a clip are stored and up to date."""
        return self.places.get(clip.name, (None, 0, None))[2] == clip.state

    def load(self, clips: Sequence[StoredClip]) -> dict[str, Tensor]:
        """Returns the features of clips, all of which are stored, by name [clips, ...].

        Raises:
            UserError: A file does not fit the others.
        """
        by_file: dict[Path, list[int]] = {}
        for i, clip in enumerate(clips):
            by_file.setdefault(self.places[clip.name][0], []).append(i)
        loaded: dict[str, Tensor] = {}
        for file, positions in by_file.items():
            rows = torch.tensor([self.places[clips[i].name][1] for i in positions])
            with safe_open(file, "pt") as shard:
                parts = {name: shard.get_tensor(name)[rows] for name in sorted(shard.keys())}
            if not loaded:
                loaded = {name: part.new_empty(len(clips), *part.shape[1:]) for name, part in parts.items()}
            of_first, of_this = ({n: (x.dtype, x.shape[1:]) for n, x in each.items()} for each in (loaded, parts))
            if of_this != of_first:
                raise UserError(f"{file} does not fit the other files in its folder: delete the folder")
            for name, part in parts.items():
                loaded[name][positions] = part
        return loaded


def stored_clips(clips: ClipTable, view: str) -> list[StoredClip]:
    """Returns what identifies the features of each clip of a table in a view, such as "1x1"."""
    states: dict[str, tuple[int, ...]] = {}
    found = []
    for row in range(len(clips)):
        path = str(clips.paths[row])
        if path not in states:
            states[path] = tuple(state_of(path))
        span = None if clips.spans_s is None else [float(s) for s in clips.spans_s[row]]
        found.append(StoredClip(json.dumps([path, span, view]), states[path]))
    return found


def weights_digest(*modules: nn.Module | None) -> str:
    """Returns a digest of all parameters of modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items() if module is not None else ():
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe_model(task: VideoTask, *frozen: nn.Module | None, precision: str) -> dict[str, Any]:
    """Returns what features depend on, apart from clips and pixels, as plain data.

    Args:
        task: The task, with the model and the normalization.
        frozen: The modules that compute the features.
        precision: The precision in which they compute.
    """
    net = task.net
    return {
        "weights": weights_digest(*frozen),
        "settings": net.settings() | {"tubelet": list(net.tubelet), "grid": list(net.grid)},
        "normalization": [task.mean.flatten().tolist(), task.std.flatten().tolist()],
        "precision": precision,
    }


def preprocessing(data: VideoDataModule) -> dict[str, Any]:
    """Returns the settings that decide which pixels an evaluation view has, as plain data."""
    reader, sampling = data.video_reader, data.sampling
    of_segments = {"kind": sampling.kind, "frames": sampling.frames}  # The others have no effect then.
    return {
        "sampling": of_segments if sampling.kind == "segments" else vars(sampling),
        "short_side": data.short_side,
        "crop": data.crop,
        "resize_mode": data.resize_mode,
        "square_pixels": reader.square_pixels,
        "decoder": reader.decoder,
    }


def store_folder(data_name: str) -> Path:
    """Returns the folder of the features of a data set: features/NAME in the current folder."""
    return Path("features") / file_stem(data_name)


def store_in_shards(
    store: FeatureStore,
    batches: Iterable[tuple[Sequence[StoredClip], Mapping[str, Tensor], int]],
    total: int,
    what: str,
) -> None:
    """Stores the features of batches of clips as they are computed, with a progress bar.

    Args:
        store: The store.
        batches: The clips of each batch, their features by name [clips, ...], and the number of clips that could
            not be read.
        total: The number of clips, for the progress bar.
        what: What is computed, for the progress bar.

    Raises:
        StoppedError: Ctrl-C interrupts it, or `batches` raises it; what is computed is stored.
    """
    clips: list[StoredClip] = []
    parts: list[Mapping[str, Tensor]] = []

    def write() -> None:
        if clips:
            store.add(clips, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
            clips.clear()
            parts.clear()

    with progress(what, total, " clips") as step:
        done, failed, size, written_s = 0, 0, 0, time.monotonic()
        try:
            for some, features, unreadable in batches:
                if some:
                    clips += some
                    parts.append(features)
                    size += sum(x.nbytes for x in features.values())
                failed += unreadable
                done += len(some) + unreadable
                step(done, f"{failed} failed" if failed else "")
                if time.monotonic() - written_s > SHARD_S or size > SHARD_BYTES:
                    write()
                    size = 0
                    written_s = time.monotonic()
            write()
        except StoppedError:
            write()
            raise
        except KeyboardInterrupt:
            write()
            raise interrupted(
                f"the features so far are in {store.folder}; run the same command to continue"
            ) from None
