"""Mutated files for each parser of ours: python benchmarks/fuzz.py [TARGET ...] [--cases N] [--seed S]

Each case ends in a value or in an error in our words, in time and in bounded memory. A case that does not is kept
under its seed, from which it can be made again.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.cvat import read_cvat
from vivit_train.data.annotations.kinetics import read_kinetics
from vivit_train.data.annotations.labelstudio import read_labelstudio
from vivit_train.data.digest import unpacked
from vivit_train.data.video import index
from vivit_train.data.video.index import Scan, Timeline
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import read_file, resizing, video_statistics
from vivit_train.models.weights.flax_file import read_parameters, write_flax
from vivit_train.models.weights.huggingface import load_huggingface, save_huggingface
from vivit_train.tools.sweep import Outcome, read_outcome
from vivit_train.training.checkpoint import load_checkpoint
from vivit_train.utils.errors import UserError

MAX_SECONDS, MAX_MEGABYTES = 5.0, 500
ODD: list[Any] = [
    0,
    -1,
    10**9,
    2**63,
    1e400,
    float("nan"),
    True,
    None,
    "",
    "x" * 5000,
    [],
    {},
    [[[]]],
    "${oc.env:HOME}",
]
# exports of annotation tools in their layouts
CVAT = """<annotations><version>1.1</version><meta>
<task><id>1</id><name>one</name><source>a.mp4</source></task><task><id>2</id><name>b.mp4</name></task></meta>
<track id="0" label="run" task_id="1"><box frame="0" outside="0"/><box frame="9" outside="1"/></track>
<track id="1" label="walk" task_id="2"><box frame="3" outside="0"/><box frame="7" outside="0"/></track>
</annotations>"""
CVAT_IMAGES = """<annotations><meta><source>a.mp4</source></meta>
<image id="0" name="frame_000000"><tag label="run"/></image>
<image id="1" name="frame_000001.png"><tag label="run"/></image>
<image id="7" name="x"><tag label="walk"/></image></annotations>"""
_SHAPES = [{"frame": 0, "outside": False}, {"frame": 9, "outside": True}]
CVAT_BACKUP: list[Any] = [
    {"version": 1, "tags": [{"frame": 3, "label": "walk"}], "tracks": [{"label": "run", "shapes": _SHAPES}]}
]
_RANGES = {"value": {"ranges": [{"start": 1, "end": 9}], "timelinelabels": ["run"]}, "type": "timelinelabels"}
LABELSTUDIO: list[Any] = [
    {"id": 1, "data": {"video": "a.mp4"}, "annotations": [{"result": [_RANGES], "was_cancelled": False}]},
    {"id": 2, "video": "b.mp4", "tricks": [{"start": 0.5, "end": 1.5, "labels": ["walk"]}]},
]
Parse = Callable[[Path], object]
Mutate = Callable[[bytes, random.Random], bytes]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, a part cut off, doubled or taken from elsewhere in the file."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(out) + 1), rng.choice([1, 2, 4, 8, 64, 512])
        kind = rng.randrange(6)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            out[at : at + length] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * length
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out = out[:at]
        elif kind == 4:
            other = rng.randrange(len(data))
            out[at:at] = data[other : other + length]
        else:
            out[at:at] = rng.choice([b"[", b"{", b'"', b"\n", b",", b"\x91", b"\x81", b"("]) * rng.choice(
                [1, 10_000]
            )
    return bytes(out)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in the tree replaced; else the bytes mutated."""
    if rng.random() < 0.4:
        return mutated(data, rng)
    tree = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        node = tree
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
                break
            node = node[key]
        node[key] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(tree).encode()


def mutated_xml(data: bytes, rng: random.Random) -> bytes:
    """An attribute, a text or a name of an element replaced, or an element doubled; else the bytes mutated."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    tree = ElementTree.fromstring(data)
    for _ in range(rng.randint(1, 3)):
        node, odd = rng.choice(list(tree.iter())), str(rng.choice([*ODD, "9" * 5001, "²", "٣"]))
        kind = rng.randrange(4)
        if kind == 0 and node.attrib:
            node.set(rng.choice(list(node.attrib)), odd)
        elif kind == 1 and len(node):
            node.append(rng.choice(list(node)))
        elif kind == 2:
            node.tag = rng.choice(["track", "task", "image", "tag", "box", "source", "x"])
        else:
            node.text = odd
    return ElementTree.tostring(tree, "utf-8")


def tiny() -> ViViT:
    return ViViT("vivit_st", num_classes=2, frames=4, image_size=32, dim=16, depth=1, heads=2)


class Target:
    """A file that a parser reads, and how it is mutated."""

    def __init__(self, file: Path, parse: Parse, mutate: Mutate = mutated) -> None:
        self.file, self.parse, self.mutate, self.whole = file, parse, mutate, file.read_bytes()
        parse(file)  # as it is, it can be read

    def run(self, seed: int) -> str:
        """One case; "" where it ends as it should."""
        self.file.write_bytes(self.mutate(self.whole, random.Random(seed)))
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            self.parse(self.file)
        except UserError:
            pass
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:300]
        took, grown = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if took > MAX_SECONDS or grown / 1024 > MAX_MEGABYTES:
            return f"took {took:.1f} s and {grown / 1024:.0f} MB"
        return ""


def targets(folder: Path) -> dict[str, Target]:
    """Each parser with a small file that it reads."""
    net = tiny()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    config = {"model": {"model": "vivit_st", "frames": 4}, "data": {"root": "x"}}
    about = {
        "config": config,
        "classes": {"": ["a", "b"]},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "multi_label": False,
    }
    torch.save({"state_dict": state, "vivit_train": about, "global_step": 3}, folder / "x.ckpt")
    save_file(net.state_dict(), folder / "x.safetensors")
    write_flax(folder / "x.flax", {"params": {"a": {"kernel": np.ones((3, 4), np.float32)}, "b": np.arange(5)}})
    save_huggingface(net, folder / "hf", classes=["a", "b"], mean=[0.5] * 3, std=[0.5] * 3, short_side=32)
    shutil.copytree(folder / "hf", folder / "shards")
    weights, names = load_file(folder / "shards/model.safetensors"), [f"model-{i}.safetensors" for i in range(2)]
    places = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        save_file({key: x for key, x in weights.items() if places[key] == name}, folder / "shards" / name)
    (folder / "shards/model.safetensors").unlink()
    (folder / "shards/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "rows").mkdir()
    (folder / "rows/train.csv").write_text('a.mp4 x\n"b c.mp4",y\nhttps://example.org/c.mp4 x\nd.mp4\ty\n' * 3)
    for name in ("a", "b c", "d"):
        (folder / f"rows/{name}.mp4").touch()
    times = Timeline(num_frames=5, fps=25.0, pts_deltas=np.full(4, 2, np.uint8), time_base=0.02)
    scan = Scan(times, 0, np.array([0, 4]), "", 5, 0.2, 2.5)
    (folder / "x.scan").write_bytes(index.pack(scan))
    index.write(folder / "x.sqlite", [("a.mp4", 1, 2, index.pack(scan))])

    kinetics = folder / "kinetics"
    for name in ("train/x/a_000001_000011", "train/y/b_000002_000012", "val/x/a_000001_000011"):
        (kinetics / name).parent.mkdir(parents=True)
        (kinetics / f"{name}.mp4").touch()
    header, row = "label,youtube_id,time_start,time_end,split,is_cc", "x,a,1,11,val,0"
    for split in ("train", "val"):
        (kinetics / f"{split}.csv").write_text(f"{header}\n{row}\ny,b,2,12,val,0\n")
    (folder / "tools").mkdir()
    for name in ("a", "b"):
        (folder / f"tools/{name}.mp4").touch()
    (folder / "tools/annotations.xml").write_text(CVAT)
    (folder / "tools/tags.xml").write_text(CVAT_IMAGES)
    (folder / "tools/annotations.json").write_text(json.dumps(CVAT_BACKUP))
    (folder / "tools/task.json").write_text(json.dumps({"name": "a.mp4"}))
    (folder / "tools/export.json").write_text(json.dumps(LABELSTUDIO))
    outcome = Outcome(job=1, overrides=["data=demo"], score=0.5, failed=False, note="")
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))

    table = json.dumps([["train", "a.mp4", "x", [], [3, 4]], ["val", "b.mp4", "y", [0.0, 1.5], []]])
    (folder / "x.clips").write_bytes(zlib.compress(table.encode()))

    def packed_scan(file: Path) -> object:
        try:
            return index.unpack(file.read_bytes())
        except index.DAMAGE:  # which `index.read` takes for no scan
            return None

    def stored_scan(file: Path) -> object:
        index.why_unused(file)
        return index.read(file, "a.mp4", 1, 2)

    def in_folder(file: Path) -> object:
        return load_huggingface(file.parent)

    def preprocessed(file: Path) -> object:
        return resizing(file.parent), video_statistics(file.parent)

    def rows(file: Path) -> object:
        return read_csv(file.parent, train=file.name, val=file.name, max_missing=1)

    def published(file: Path) -> object:
        return read_kinetics(file.parent, max_missing=1)

    def cvat(file: Path) -> object:
        return read_cvat(file.parent, train=file.name, val=file.name, fps=25.0, max_missing=1)

    def labelstudio(file: Path) -> object:
        return read_labelstudio(file.parent, train=file.name, val=file.name, fps=25.0, max_missing=1)

    def clips(file: Path) -> object:
        return unpacked(torch.from_numpy(np.frombuffer(file.read_bytes(), np.uint8).copy()), str(file))

    return {
        "torch": Target(folder / "x.ckpt", load_checkpoint),
        "safetensors": Target(folder / "x.safetensors", read_file),
        "flax": Target(folder / "x.flax", read_parameters),
        "json": Target(folder / "hf/config.json", in_folder, mutated_json),
        "shards": Target(folder / "shards/model.safetensors.index.json", in_folder, mutated_json),
        "preprocessing": Target(folder / "hf/preprocessor_config.json", preprocessed, mutated_json),
        "csv": Target(folder / "rows/train.csv", rows),
        "kinetics": Target(kinetics / "val.csv", published),
        "cvat": Target(folder / "tools/annotations.xml", cvat, mutated_xml),
        "cvat_images": Target(folder / "tools/tags.xml", cvat, mutated_xml),
        "cvat_backup": Target(folder / "tools/annotations.json", cvat, mutated_json),
        "labelstudio": Target(folder / "tools/export.json", labelstudio, mutated_json),
        "outcome": Target(folder / "outcome.json", read_outcome, mutated_json),
        "timelines": Target(folder / "x.scan", packed_scan),
        "sqlite": Target(folder / "x.sqlite", stored_scan),
        "clips": Target(folder / "x.clips", clips),
    }


def fuzz(target: str, cases: int, seed: int, folder: Path) -> list[tuple[int, str]]:
    """The seeds of the cases that failed, and how."""
    found = targets(folder)[target]
    seeds = track(range(seed, seed + cases), f"{target:<12}", disable=not sys.stdout.isatty())
    return [(s, why) for s in seeds if (why := found.run(s))]


NAMES = (
    *(
        "torch",
        "safetensors",
        "flax",
        "json",
        "shards",
        "preprocessing",
        "csv",
        "kinetics",
        "cvat",
        "cvat_images",
        "cvat_backup",
        "labelstudio",
    ),
    *("outcome", "timelines", "sqlite", "clips"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    if unknown := set(options.target) - set(NAMES):
        parser.error(f"{min(unknown)} is none of {chr(44).join(NAMES)}")
    for name in options.target or NAMES:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            bad = fuzz(name, options.cases, options.seed, Path(folder))
        print(
            f"{name:<12} {options.cases:,} cases, {time.monotonic() - began:.0f} s, {len(bad)} failed", flush=True
        )
        for seed, why in bad[:10]:
            print(f"  {name} --cases 1 --seed {seed}: {why}")
        failed += len(bad)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
