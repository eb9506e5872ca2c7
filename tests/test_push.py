"""`vivit push` and `load("user/name")`, against a server that speaks as much of the Hub's API as they need."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from checkpoints import checkpoint
from typer.testing import CliRunner, Result

import vivit_train
from vivit_train.data.synthetic import CLASSES
from vivit_train.tools.cli import app
from vivit_train.utils.errors import UserError

REPO, COMMIT, TOKEN = "someone/vivit-mine", "0" * 40, "hf_right"
FILES = {"README.md", "example.py", "model.safetensors", "preprocessing.json", "vivit_train.json"}


class Hub(ThreadingHTTPServer):
    """A stand-in for huggingface.co with repositories in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        if token not in (TOKEN, "hf_read_only"):
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        if token == "hf_read_only":
            return self.answer({"error": "You don't have the rights to create a model"}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in self.server.repos:
                return self.answer(
                    {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409
                )
            self.server.repos[name], self.server.private[name] = (
                {},
                asked.get("visibility") == "private" or bool(asked.get("private")),
            )
            return self.answer({"url": f"{self.server.url}/{name}", "name": name})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.repos[REPO][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/{REPO}/commit/{COMMIT}"
            return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        return self.answer({"error": f"unexpected {self.path}"}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        user, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        files = self.server.repos.get(f"{user}/{name}")
        if files is None:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models/") and "tree" not in rest:
            listed = [{"rfilename": file} for file in sorted(files)]
            return self.answer({"id": REPO, "sha": COMMIT, "siblings": listed, "private": False})
        if "tree" in rest:
            listed = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": COMMIT} for file in sorted(files)
            ]
            return self.answer(listed)
        content = files.get(rest[-1])
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, headers={"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The server, to which this process is directed. huggingface_hub reads HF_ENDPOINT when it is imported."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield server
        server.shutdown()


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    (tmp_path / "secret/checkpoints").mkdir(parents=True)
    where = {"root": "/home/me/secret", "train": "/home/me/train.csv"}
    return checkpoint(tmp_path / "secret/checkpoints/best.ckpt", {"": list(CLASSES)}, **where)


def push(*words: object) -> Result:
    return CliRunner().invoke(app, ["push", *map(str, words)])


def test_a_pushed_model_predicts_the_same(
    hub: Hub, ckpt: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = push(ckpt, REPO, "--private")
    assert done.exit_code == 0, done.output
    assert f"vivit_train.load('{REPO}') loads it" in done.output
    files = hub.repos[REPO]
    assert set(files) == FILES
    assert hub.private[REPO]
    assert b"/home/me" not in b"".join(files.values())
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: vivit-train\n")
    assert f'vivit_train.load("{REPO}")' in card
    video = next(videos.glob("test/*/*.mp4"))
    expected = vivit_train.load(ckpt, device="cpu").predict(video, num_workers=0)
    for name in (REPO, f"hf://{REPO}"):
        found = vivit_train.load(name, device="cpu").predict(video, num_workers=0)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
        assert [label.name for label in found.labels] == [label.name for label in expected.labels]
    folder = next(tmp_path.glob("cache/**/vivit_train.json")).parent
    found = vivit_train.load(folder, device="cpu").predict(video, num_workers=0)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert push(ckpt, REPO).exit_code == 0  # a second commit


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (
            "hf_wrong",
            "401: Invalid credentials in Authorization header): the token is not valid: run `hf auth login`",
        ),
        ("hf_read_only", "403: You don't have the rights to create a model): the token may not write to someone"),
    ],
)
def test_a_token_that_is_refused(
    hub: Hub, ckpt: Path, token: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    done = push(ckpt, REPO)
    assert done.exit_code == 2
    assert said in done.stderr, done.output
    assert not hub.repos


def test_what_cannot_be_pushed(hub: Hub, ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        ([ckpt, "no name"], "expected user/name"),
        ([tmp_path / "none.ckpt", REPO], "none.ckpt: no such file or folder"),
        ([tmp_path, REPO], "the folder has neither best.ckpt"),
    ):
        done = push(*words)
        assert done.exit_code == 2
        assert said in done.stderr
    monkeypatch.delenv("HF_TOKEN")
    assert "run `hf auth login`, or set HF_TOKEN" in push(ckpt, REPO).stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    done = push(ckpt, REPO)
    assert done.exit_code == 2
    assert "could not be uploaded (it cannot be reached)" in done.stderr
    assert "check the network, and run the same command again" in done.stderr


def test_a_name_that_the_hub_does_not_know(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"no weights at someone/nothing, .*did not provide a model of that name"):
        vivit_train.load("someone/nothing")


def test_nothing_in_a_folder_of_a_stranger_runs(hub: Hub, ckpt: Path, videos: Path, tmp_path: Path) -> None:
    assert push(ckpt, REPO).exit_code == 0
    for name, content in hub.repos[REPO].items():
        (tmp_path / name).write_bytes(content)
    video, file = next(videos.glob("test/*/*.mp4")), tmp_path / "vivit_train.json"
    good = file.read_text()
    changes: list[tuple[Callable[[Any], object], str]] = [
        (lambda data: data["config"]["model"].update(_target_="os.system"), "os.system"),
        (lambda data: data["config"]["data"].update(decoder="os.system"), "os.system"),
        (lambda data: data.update(mean="x"), "malformed entry"),
        (lambda data: data["config"]["model"].update(depth=10**6), "depth"),
    ]
    for change, said in changes:
        content = json.loads(good)
        change(content)
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            vivit_train.load(tmp_path, device="cpu").predict(video, num_workers=0)
    file.write_text(good)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is the download complete"):
        vivit_train.load(tmp_path)


@pytest.mark.slow
def test_the_commands_themselves(hub: Hub, ckpt: Path, videos: Path, tmp_path: Path) -> None:
    """Processes of their own, which find the server by HF_ENDPOINT."""
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "vivit_train.tools.cli"]
    video = str(next(videos.glob("test/*/*.mp4")))

    def run(*words: str) -> str:
        options: Any = {"capture_output": True, "text": True, "cwd": tmp_path, "env": env, "timeout": 240}
        done = subprocess.run([*command, *words], check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("push", str(ckpt), REPO)
    assert not hub.private[REPO]
    assert run("predict", REPO, video) == run("predict", str(ckpt), video)
