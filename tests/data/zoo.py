"""Files that a crawl may hold: cut, overwritten, flipped, without video, with headers that lie."""

import random
from pathlib import Path

import av
import numpy as np
from videos import encode

FORMATS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4"}
LIES = (0, 1, 1000, 2**31 - 1, 2**32 - 1)
MP4_FIELDS = {  # box -> offsets of 32-bit fields behind its name
    b"mvhd": (12, 16),  # time scale, duration
    b"tkhd": (20, 40, 44, 76, 80),  # duration, matrix (rotation), width, height
    b"elst": (4, 8, 12),  # entries, duration, start
    b"mdhd": (12, 16),
    b"stts": (4, 8, 12),  # entries, frames, duration of each
    b"ctts": (4, 8, 12),
    b"stss": (4, 8),  # key frames
    b"stsz": (4, 8, 12),  # size of all, frames, size of the first
    b"stco": (4, 8),  # chunks, place of the first
    b"avcC": (0, 6),
}
AVI_FIELDS = {b"avih": (4, 20, 36, 40), b"strh": (24, 28, 36), b"idx1": (0, 12, 16)}


def overwritten(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + value.to_bytes(4) + data[at + 4 :]


def zoo(folder: Path) -> list[Path]:
    """Makes them in a folder; those called "whole" and "one" (frame) are good."""
    draw, files = random.Random(0), {}
    for suffix, codec in FORMATS.items():
        encode(folder / f"whole.{suffix}", codec, 40, (96, 64), g="12")
        encode(folder / f"one.{suffix}", codec, 1, (96, 64))
        data = (folder / f"whole.{suffix}").read_bytes()
        for tenth in range(10):
            files[f"cut{tenth}.{suffix}"] = data[: len(data) * tenth // 10 + 1]
        for start in (0, len(data) // 3, len(data) // 2, len(data) - 200):
            files[f"zeros{start}.{suffix}"] = data[:start] + bytes(200) + data[start + 200 :]
        for flips in (1, 3, 10, 30, 100, 1000):
            flipped = bytearray(data)
            for _ in range(flips):
                flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            files[f"flips{flips}.{suffix}"] = bytes(flipped)
        files[f"empty.{suffix}"] = b""
        files[f"text.{suffix}"] = b"This is not a video.\n" * 20
        files[f"noise.{suffix}"] = draw.randbytes(5000)
        files[f"twice.{suffix}"] = data + data
        for box, offsets in {"mp4": MP4_FIELDS, "avi": AVI_FIELDS}.get(suffix, {}).items():
            at = data.find(box)
            for offset in offsets if at >= 0 else ():
                for lie in LIES:
                    files[f"{box.decode()}{offset}_{lie}.{suffix}"] = overwritten(data, at + 4 + offset, lie)
        with av.open(str(folder / f"audio.{suffix}"), "w") as out:
            stream = out.add_stream("libopus" if suffix == "webm" else "aac", rate=48000)
            for _ in range(4):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
                sound.sample_rate = 48000
                out.mux(stream.encode(sound))
            out.mux(stream.encode(None))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())
