"""Reads the packets of a video and tells which frames are displayed when, without decoding them if possible."""

from array import array
from dataclasses import dataclass
from functools import cached_property

import av
import numpy as np
from numpy.typing import NDArray

from vivit_train.data.video.container import open_video
from vivit_train.utils.errors import VideoError

# In these containers, a seek lands on the requested key frame. In FLV, WMV and MPEG-TS, it may land after it.
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
UNKNOWN = -(2**63)  # the pts of a packet that has none


@dataclass(frozen=True, eq=False, kw_only=True)
class Packets:
    """The packets of a video stream, and what the header says about it. Times are in units of `time_base`.

    Attributes:
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the codec.
        has_b_frames: Whether the stream has B-frames; it is known only after the first frame is decoded.
        why_count: The reason why all frames were decoded and counted; "" if they were not.
        decoded: The pts of each decoded frame, None if it has none; empty if frames were not counted.
        pts: The pts of each packet in the order of the file, int64 [n]; `UNKNOWN` if it has none.
        durations: The duration of each packet, int64 [n].
        is_key: Whether each packet is a key frame, bool [n].
        is_hidden: Whether the edit list hides each frame, which is decoded but not shown, bool [n].
        has_open_gop: Whether a key frame is not an IDR frame.
        time_base: The unit of time in seconds; 0 if unknown.
        promised: The number of frames that the header claims; 0 if unknown.
        duration: The duration that the header claims; 0 if unknown.
        promised_s: The duration that the header of the stream or the file claims, in seconds; 0 if unknown.
        rate: The frame rate that the header claims.
        width: The width of the first stored frame: as decoded if frames were counted, else as the header claims.
        height: The height of the first stored frame.
        resized: The first frame's size and another one that follows; "" if frames were not counted or are equal.
    """

    container: str
    codec: str
    has_b_frames: bool
    why_count: str
    decoded: list[int | None]
    pts: NDArray[np.int64]
    durations: NDArray[np.int64]
    is_key: NDArray[np.bool]
    is_hidden: NDArray[np.bool]
    has_open_gop: bool
    time_base: float
    promised: int
    duration: int
    promised_s: float
    rate: float
    width: int
    height: int
    resized: str

    @cached_property
    def in_order(self) -> NDArray[np.int64]:
        """The known pts in ascending order."""
        return np.sort(self.pts[self.pts != UNKNOWN])

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """The known pts of the key frames in ascending order."""
        return np.sort(self.pts[self.is_key & (self.pts != UNKNOWN)])

    @property
    def is_short(self) -> bool:
        """Whether there are fewer packets than the header claims."""
        return len(self.pts) < self.promised

    def ambiguity(self) -> str:
        """Returns the reason why the packets do not show which frames are displayed, or "" if they do."""
        if why := count_reason(self.container, self.codec, self.has_b_frames):
            return why
        if len(self.in_order) < len(self.pts) or not np.diff(self.in_order).all() or not len(self.keys):
            return "packets without a unique pts, or no key frame"
        return ""


def read_packets(path: str, why_count: str = "") -> Packets:
    """Reads the packets of a video.

    Args:
        path: The path of the video.
        why_count: The reason why frames must be counted by decoding them; "" if none is known yet.
    """
    pts, durations, is_key, is_hidden = array("q"), array("q"), bytearray(), bytearray()
    decoded: list[int | None] = []
    has_open_gop, began, resized = False, False, ""
    with open_video(path, leave_open=True) as (container, stream):
        context = stream.codec_context
        codec, width, height = context.codec.canonical_name, context.width, context.height
        why_count = why_count or count_reason(container.format.name, codec)
        for packet in container.demux(stream):
            if packet.size:
                pts.append(UNKNOWN if (at := packet.pts) is None else at)
                durations.append(packet.duration or 0)
                is_key.append(packet.is_keyframe)
                is_hidden.append(packet.is_discard)
                if packet.is_keyframe:
                    has_open_gop = has_open_gop or not _is_idr(codec, memoryview(packet))
            if why_count:
                frames = context.decode(packet)
                if frames and not decoded:
                    width, height = frames[0].width, frames[0].height
                for frame in frames:
                    if (frame.width, frame.height) != (width, height):
                        resized = f"from {width}x{height} to {frame.width}x{frame.height}"
                decoded += (frame.pts for frame in frames)
            elif codec == "mpeg4" and not began:  # `has_b_frames` is known only after the first frame is decoded
                began = bool(context.decode(packet))
        time_base, duration = float(stream.time_base or 0), stream.duration or 0
        promised_s = duration * time_base
        # The container's duration is that of its longest stream.
        if not promised_s and not container.streams.audio:
            promised_s = (container.duration or 0) / av.time_base
        return Packets(
            container=container.format.name,
            codec=codec,
            has_b_frames=bool(context.has_b_frames),
            why_count=why_count,
            decoded=decoded,
            pts=np.frombuffer(pts, np.int64),
            durations=np.frombuffer(durations, np.int64),
            is_key=np.frombuffer(is_key, np.bool),
            is_hidden=np.frombuffer(is_hidden, np.bool),
            has_open_gop=has_open_gop,
            time_base=time_base,
            promised=stream.frames,
            duration=duration,
            promised_s=promised_s,
            rate=float(stream.average_rate or stream.guessed_rate or 25),  # FFmpeg's default is 25 fps
            width=width,
            height=height,
            resized=resized,
        )


def check_complete(path: str, packets: Packets) -> None:
    """Raises a VideoError if the file ends before its last frame."""
    if not packets.is_short or not len(packets.in_order):
        return
    # A trimmed file may also contain fewer packets than its header claims, but then its duration is not shorter.
    end = (packets.pts + packets.durations)[packets.pts != UNKNOWN].max()
    if end - packets.in_order[0] < packets.duration:
        raise VideoError(path, f"ends after {len(packets.pts)} of {packets.promised} frames", kind="truncated")


def display_times(path: str, packets: Packets) -> tuple[NDArray[np.int64], float]:
    """Returns the time of each displayed frame in ascending order, and the unit of time in seconds.

    If the frames have no usable times, they are evenly spaced at the frame rate of the header.

    Raises:
        VideoError: If no frame is displayed.
    """
    if packets.why_count:
        shown = np.unique(np.array([pts for pts in packets.decoded if pts is not None], np.int64))
        num_frames = len(packets.decoded)
    else:  # frames before the first key frame refer to frames that were cut away, so they are not shown
        shown = packets.in_order[packets.in_order >= packets.keys[0]]
        if packets.is_hidden.any():
            shown = np.setdiff1d(shown, packets.pts[packets.is_hidden])
        num_frames = len(shown)
    if num_frames == 0:
        raise VideoError(path, "no frame can be decoded")
    if len(shown) < num_frames or not packets.time_base:
        return np.arange(num_frames), 1 / packets.rate
    return shown, packets.time_base


def count_reason(container: str, codec: str, has_b_frames: bool = False) -> str:
    """Returns the reason why packets do not show which frames are displayed, or "" if they do."""
    if container not in INDEXED:
        return f"{container} files have no reliable index"
    if container == "avi" and (has_b_frames or codec in ("h264", "hevc")):
        return "AVI with B-frames: the file stores decoding times, not presentation times"
    if codec == "mpeg4" and has_b_frames:
        return "MPEG-4 with B-frames: several frames may share a packet"
    return ""


def _is_idr(codec: str, key_packet: memoryview) -> bool:
    """Returns whether a key frame is an IDR frame, across which no frame may refer; True for codecs without IDR.

    It reads the types of the NAL units (H.264 and H.265, section 7.3.1), each of which follows a 4-byte length.
    """
    if codec not in ("h264", "hevc"):
        return True
    at = 0
    while at + 4 < len(key_packet):
        kind = key_packet[at + 4] & 31 if codec == "h264" else key_packet[at + 4] >> 1 & 63
        if kind in ((5,) if codec == "h264" else (19, 20)):
            return True
        at += 4 + int.from_bytes(key_packet[at : at + 4])
    return False


def decord_fault(packets: Packets) -> str:
    """Returns the reason why decord would return wrong frames or none, or "" if it returns the right ones."""
    if packets.is_hidden.any():
        return "edit list: some frames are not shown"
    # In decoding order, the key frame of an open GOP precedes frames that are displayed before it.
    places = np.searchsorted(packets.in_order, packets.pts[packets.is_key])
    if packets.has_open_gop or (places != np.flatnonzero(packets.is_key)).any():
        return "open GOP: frames refer to others across a key frame"
    if packets.is_short:
        return "fewer frames than the header claims: decord trusts the header and may run out of memory"
    if packets.codec == "av1":
        return "AV1: decord has no decoder for it"
    return ""
