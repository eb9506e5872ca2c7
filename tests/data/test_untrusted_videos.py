"""What an annotation row may lead to: files and servers that are meant, and containers that hold video."""

import os
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Happened
from videos import encode

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.video import index, storage, urls
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import packed_scan, probe
from vivit_train.utils.errors import UserError, VideoError

SECTION = "Strangers' files"


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    "url",
    [
        "reference://x::http://127.0.0.1:9/x.json",
        "reference::memory://x",
        "simplecache::reference://x",
        "simplecache::simplecache::http://example.org/a.mp4",
        "filecache::https://example.org/a.mp4",
        "blockcache::s3://bucket/a.mp4",
        "zip://a.mp4::https://example.org/a.zip",
        "http://example.org/a.mp4::zip://x",
        "tar://a.mp4::memory://x.tar",
        "dir::memory://x",
        "local:///etc/passwd",
        "sftp://host/a.mp4",
        "ssh://host/a.mp4",
        "ftp://host/a.mp4",
        "smb://host/a.mp4",
        "github://org:repo@main/a.mp4",
        "jupyter://host/a.mp4",
        "data://text/plain,x",
        "HTTP://example.org/a.mp4",
        "generic://x",
        "async_wrapper://x",
        "memory://[x]::reference://a::memory://b",
        "s3://[::zip://a::memory://r",
        "http://[::reference://a",
        "http://[::1]/a::reference://b",
        "simplecache::http://[::1]/a",
    ],
)
def test_other_protocols_and_chains_are_refused_with_the_row(url: str, tmp_path: Path, happened: Happened) -> None:
    (tmp_path / "train.csv").write_text(f'"{url}.mp4" a\n"{url}.mp4" b\n')
    with pytest.raises(
        UserError, match=r"train\.csv:1: .*only file, s3, gs, az, hf, http, https, memory"
    ) as error:
        read_csv(tmp_path, train="train.csv", val="train.csv")
    for ask in (storage.state, storage.listing, storage.read, probe):
        with pytest.raises(UserError, match="only file, s3"):
            ask(f"{url}.mp4")
        with pytest.raises(UserError, match="only file, s3"):
            ask(f"{url}/a.tar/b.mp4")
    happened(f"A row that names `{url}`", error.value)


class Redirect(BaseHTTPRequestHandler):
    to = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.to)
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Counting(SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, list[str]]]:
    """The port of a web server over tmp_path, and what it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (Counting,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http.server_port, asked
        http.shutdown()


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0.0.0.0"]
)
def test_addresses_that_are_not_public_are_not_asked(
    host: str, server: tuple[int, list[str]], tmp_path: Path, happened: Happened
) -> None:
    port, asked = server
    encode(tmp_path / "a.mp4", frames=3)
    for cached in ("",) if "::" in host else ("", "simplecache::"):  # fsspec takes its "::" for another chain
        with pytest.raises(VideoError, match=r"no public address; set data\.allow_private_urls=true") as error:
            probe(f"{cached}http://{host}:{port}/a.mp4")
    with pytest.raises(VideoError, match="no public address"):
        probe(f"http://{host}:{port}/a.tar/a.mp4")
    assert not asked
    with urls.private_urls(True):
        assert probe(f"http://127.0.0.1:{port}/a.mp4").num_frames == 3
    happened(f"A row that leads to http://{host}", error.value)


@pytest.mark.fault(SECTION)
def test_a_name_and_a_redirect_that_lead_to_a_private_address_are_not_followed(
    server: tuple[int, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Happened
) -> None:
    """A public server redirects: that it is public is pretended by having its name's address pass."""
    port, asked = server
    encode(tmp_path / "a.mp4", frames=3)
    redirect = type("Handler", (Redirect,), {"to": f"http://127.0.0.1:{port}/a.mp4"})
    real = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host == "videos.example.org" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with ThreadingHTTPServer(("127.0.0.1", 0), redirect) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        with pytest.raises(VideoError, match="no public address") as error:
            probe(f"http://videos.example.org:{http.server_port}/a.mp4")
        with urls.private_urls(True):
            assert probe(f"http://videos.example.org:{http.server_port}/a.mp4").num_frames == 3
            assert asked
        http.shutdown()
    happened("A host's name that leads to 127.0.0.1", error.value)


LISTS: dict[str, Callable[[Path], str]] = {
    "ffconcat": lambda clip: f"ffconcat version 1.0\nfile {clip.name}\n",
    "m3u8": lambda clip: f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip.name}\n#EXT-X-ENDLIST\n",
    "sdp": lambda clip: (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    ),
    "dash": lambda clip: (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        f"<BaseURL>{clip.name}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
}


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    "ending",
    [
        *("mp4", "mkv"),
        *(
            pytest.param(ending, marks=pytest.mark.slow)
            for ending in (
                "ts",
                "webm",
                "mov",
                "avi",
                "gif",
                "m4v",
                "ogv",
                "mxf",
                "flv",
                "wmv",
                "m2ts",
                "mpg",
                "rm",
            )
        ),
    ],
)
def test_a_list_of_other_files_is_no_video_whatever_it_is_called(
    kind: str, ending: str, tmp_path: Path, happened: Happened
) -> None:
    encode(tmp_path / "secret.mp4", frames=3)
    path = tmp_path / f"a.{ending}"
    path.write_text(LISTS[kind](tmp_path / "secret.mp4"))
    with pytest.raises(VideoError, match="not a video file|damaged") as error:  # .m4v: no MPEG-4 stream
        read_frames(path, [0])
    happened(f"A file of the kind {kind} that is called a.{ending}", error.value)


@pytest.mark.fault(SECTION)
def test_a_list_that_names_a_pipe_does_not_wait_for_it(tmp_path: Path, happened: Happened) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    with pytest.raises(VideoError, match="not a video file") as error:
        probe(tmp_path / "a.mp4")
    happened("An .mp4 that is an ffconcat list of a named pipe", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("rate", [1001, 21_474_866])
def test_a_header_that_claims_an_absurd_rate_is_damaged(rate: int, tmp_path: Path, happened: Happened) -> None:
    """dwScale and dwRate of an AVI's stream header (strh) stand 20 and 24 bytes behind "vids"."""
    encode(tmp_path / "a.avi", codec="mpeg4", frames=6)
    data = bytearray((tmp_path / "a.avi").read_bytes())
    at = data.index(b"vids")
    data[at + 20 : at + 24], data[at + 24 : at + 28] = (1).to_bytes(4, "little"), rate.to_bytes(4, "little")
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(VideoError, match=r"claims [\d.,e+]+ frames per second; the header is damaged") as error:
        probe(tmp_path / "a.avi")
    happened(f"An AVI whose header claims {rate:,} frames per second", error.value)


@pytest.mark.fault(SECTION)
def test_an_ipv6_address_is_private_and_no_chain(tmp_path: Path, happened: Happened) -> None:
    class Six(ThreadingHTTPServer):
        address_family = socket.AF_INET6

    encode(tmp_path / "a.mp4", frames=3)
    handler = partial(type("Handler", (Counting,), {"asked": []}), directory=str(tmp_path))
    try:
        http = Six(("::1", 0), handler)
    except OSError:
        pytest.skip("no IPv6 here")
    with http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://[::1]:{http.server_port}/a.mp4"
        with pytest.raises(VideoError, match="no public address") as error:
            probe(url)
        with urls.private_urls(True):
            assert probe(url).num_frames == 3
        http.shutdown()
    happened("A row that leads to http://[::1]", error.value)


@pytest.mark.fault(SECTION)
def test_a_pipe_among_pictures_does_not_wait(tmp_path: Path, happened: Happened) -> None:
    os.mkfifo(tmp_path / "1.jpg")
    with pytest.raises(VideoError, match="is not a regular file") as error:
        probe(tmp_path)
    happened("A named pipe called 1.jpg in a folder of pictures", error.value)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    "lie",
    [
        {"pts_deltas": [0] * 5},
        {"pts_deltas": [2**63] * 5},
        {"keys": []},
        {"keys": [5, 0]},
        {"keys": [10**6]},
        {"start": 2**61 * 7},
        {"fps": 1e9},
        {"time_base": 1e300},
    ],
    ids=str,
)
def test_a_stored_scan_that_contradicts_itself_is_made_anew(
    lie: dict[str, Any], tmp_path: Path, happened: Happened
) -> None:
    path, file = tmp_path / "a.mp4", tmp_path / index.NAME
    encode(path, frames=6)
    true = index.unpack(packed_scan(path))
    parts = {name: getattr(true.timeline, name) for name in ("num_frames", "fps", "pts_deltas", "time_base")}
    parts |= {"pts_deltas": np.array(lie["pts_deltas"], np.uint64)} if "pts_deltas" in lie else {}
    parts |= {name: lie[name] for name in ("fps", "time_base") if name in lie}
    scan = true._replace(timeline=index.Timeline(**parts))
    if "keys" in lie:
        scan = scan._replace(keys=np.array(lie["keys"], np.int64))
    if "start" in lie:
        scan = scan._replace(start=lie["start"])
    status = path.stat()
    index.write(file, [(str(path), status.st_mtime_ns, status.st_size, index.pack(scan))])
    assert index.read(file, str(path), status.st_mtime_ns, status.st_size) is None
    honest = tmp_path / "honest.sqlite"
    index.write(honest, [(str(path), status.st_mtime_ns, status.st_size, index.pack(true))])
    assert index.read(honest, str(path), status.st_mtime_ns, status.st_size) is not None
    happened(f"A stored scan with {lie}", "counts as none: the file is scanned")


@pytest.mark.fault(SECTION)
def test_a_picture_of_absurd_size_is_not_decoded(tmp_path: Path, happened: Happened) -> None:
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + 18_000)) for _ in range(10_000)) + rows.flush()
    header = struct.pack(">IIBBBBB", 18_000, 10_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "1.png").write_bytes(png)
    with pytest.raises(VideoError, match="damaged") as error:
        probe(tmp_path)
    happened("A picture of 18,000 x 10,000 pixels in 200 kB", error.value)


def with_reference(movie: bytes, kind: bytes, body: bytes) -> bytes:
    """A QuickTime movie whose media lie in another file: another entry in `dref`, and the sizes of its parents."""
    at = movie.index(b"dref") - 4
    entry = struct.pack(">I4sI", 12 + len(body), kind, 0) + body
    box = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    old = int.from_bytes(movie[at : at + 4])
    data = bytearray(movie[:at] + box + movie[at + old :])
    for parent in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        size = data.rindex(parent, 0, at) - 4
        data[size : size + 4] = (int.from_bytes(data[size : size + 4]) + len(box) - old).to_bytes(4)
    return bytes(data)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("kind", ["url ", "urn ", "alis"])
def test_a_movie_that_refers_to_another_file_reads_its_own(kind: str, tmp_path: Path, happened: Happened) -> None:
    """Were it read, the frames would be those of the other file, at the same offsets: black ones."""
    encode(tmp_path / "a.mov", frames=6)
    secret = tmp_path / "secret.mov"
    secret.write_bytes(bytes((tmp_path / "a.mov").stat().st_size))
    name = str(secret).encode()
    alias = bytes(10) + b"volume".ljust(36) + bytes([10]) + b"secret.mov".ljust(103)
    body = {
        "url ": b"file://" + name + b"\0",
        "urn ": b"x\0file://" + name + b"\0",
        "alis": alias + struct.pack(">HH", 2, len(name)) + name + b"\xff\xff\0\0",
    }[kind]
    whole = read_frames(tmp_path / "a.mov", [0, 5])
    (tmp_path / "b.mov").write_bytes(with_reference((tmp_path / "a.mov").read_bytes(), kind.encode(), body))
    try:
        assert np.array_equal(read_frames(tmp_path / "b.mov", [0, 5]), whole)
        said: object = "the reference is not followed: the frames are those of the file itself"
    except VideoError as error:
        said = error
    happened(f"A .mov whose media are in another file, by an entry {kind!r} of its dref", said)


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize(
    ("times", "ending"),
    [
        ([0, 10**7, 2 * 10**7], "mkv"),
        ([0, 10**7, 2 * 10**7], "flv"),
        ([-(10**8), 0, 1], "webm"),
    ],
)
def test_time_stamps_that_lie_months_apart_are_damage(
    times: list[int], ending: str, tmp_path: Path, happened: Happened
) -> None:
    codec = "libvpx-vp9" if ending == "webm" else "libx264"
    encode(tmp_path / f"a.{ending}", codec=codec, frames=3, times=times)
    with pytest.raises(VideoError, match=r"claims [\d.,e-]+ frames per second; the header is damaged") as error:
        probe(tmp_path / f"a.{ending}")
    happened(f"A .{ending} with frames at {', '.join(f'{time / 30:,.0f}' for time in times)} s", error.value)


HEADERS = {  # where a box's number stands behind its name, and what it says
    "mvhd": (16, 0),
    "mdhd": (16, 0),
    "stts": (8, 2**32 - 1),
    "stsz": (12, 2**32 - 1),
    "stsc": (8, 2**32 - 1),
    "ctts": (8, 2**32 - 1),
    "dref": (8, 2**32 - 1),
    "tkhd": (80, 2**32 - 1),
    "avc1": (28, 2**32 - 1),
}
ELEMENTS = {  # the name of an element of Matroska, and its value
    "TimecodeScale": (b"\x2a\xd7\xb1\x83", b"\0\0\0"),
    "Duration NaN": (b"\x44\x89\x88", struct.pack(">d", float("nan"))),
    "Duration 1e300": (b"\x44\x89\x88", struct.pack(">d", 1e300)),
    "PixelWidth": (b"\xb0\x81", b"\0"),
    "Segment": (b"\x18\x53\x80\x67", b"\x01" + b"\xff" * 7),
}


@pytest.mark.fault(SECTION)
@pytest.mark.parametrize("name", [*HEADERS, *ELEMENTS])
def test_absurd_headers_end_in_frames_or_a_message(name: str, tmp_path: Path, happened: Happened) -> None:
    """No header makes a read long or large: FFmpeg allocates by the size of the file."""
    file = tmp_path / ("a.mp4" if name in HEADERS else "a.mkv")
    encode(file, frames=6)
    data, before = bytearray(file.read_bytes()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name in HEADERS:
        shift, number = HEADERS[name]
        at, value = data.index(name.encode()) + shift, number.to_bytes(4)
    else:
        key, value = ELEMENTS[name]
        at = data.index(key) + len(key)
    data[at : at + len(value)] = value
    file.write_bytes(data)
    began = time.process_time()
    try:
        count = probe(file).num_frames
        said: object = f"{count} frames, which can be read"
        assert len(read_frames(file, range(count))) == count <= 6
    except VideoError as error:
        said = error
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    happened(f"A {file.suffix} with {name} of {value.hex()}", said)
