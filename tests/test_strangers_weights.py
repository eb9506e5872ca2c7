"""Weights of strangers that eval.py scores: Hugging Face folders, their shards, and flax trees are data."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Happened
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from test_released import save_sharded, score, tiny, write_index
from test_strangers import HOSTILE, SECRET, cheap, filled
from trees import make_tree

from vivit_train.models.weights.files import resizing
from vivit_train.models.weights.flax_file import write_flax
from vivit_train.models.weights.huggingface import load_huggingface
from vivit_train.models.weights.scenic import to_scenic
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_sharded(tiny("vivit_st"), tmp_path / "hf")


@pytest.fixture(scope="module")
def kinetics(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("strangers") / "k400"
    make_tree("kinetics400", root, sorted((videos / "test").rglob("*.mp4"))[:2])
    return root


def places(folder: Path) -> dict[str, str]:
    index: dict[str, dict[str, str]] = json.loads((folder / "model.safetensors.index.json").read_text())
    return index["weight_map"]


MAPS: dict[str, tuple[Callable[[dict[str, str]], Any], str]] = {
    "a file above it": (lambda m: m | {"a": f"../{FIRST}"}, "is refused: '../model-.*' is not the name of a"),
    "an absolute file": (lambda m: m | {"a": "/etc/x.safetensors"}, "is refused: '/etc/x.safetensors' is not"),
    "a file in a folder": (
        lambda m: m | {"a": "b/c.safetensors"},
        "is refused: 'b/c.safetensors' is not the name",
    ),
    "a file of Windows": (lambda m: m | {"a": "C:\\x.safetensors"}, r"is refused: 'C:.*x\.safetensors' is not"),
    "a hidden file": (lambda m: m | {"a": ".safetensors"}, "is refused: '.safetensors' is not the name"),
    "a pickle": (lambda m: m | {"a": "pytorch_model.bin"}, "is refused: 'pytorch_model.bin' is not the name"),
    "an URL": (lambda m: m | {"a": "https://x.org/a.safetensors"}, "is refused: 'https://.*' is not the name"),
    "a name of 5,000 letters": (lambda m: m | {"a": "x" * 5000 + ".safetensors"}, "are? not there|is not there"),
    "a missing file": (
        lambda m: m | {"a": "z.safetensors"},
        r"lists 4 files, of which z\.safetensors is not there",
    ),
    "2,000 files": (lambda m: {str(i): f"{i}.safetensors" for i in range(2000)}, "lists 2,000 files, more"),
    "a weight that no file has": (lambda m: m | {"a": FIRST}, f"{FIRST} does not hold 'a', which"),
    "a weight of another file": (lambda m: dict.fromkeys(m, FIRST), "lists it there|does not hold"),
    "a weight less": (lambda m: dict(list(m.items())[1:]), "holds '.*', but .* does not list it there"),
    "no weights": (lambda m: {}, "weight_map must name the file of each weight"),
    "a list": (lambda m: [FIRST], "weight_map must name the file of each weight"),
    "numbers": (lambda m: dict.fromkeys(m, 1), "weight_map must name the file of each weight"),
}


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize("what", MAPS)
def test_an_index_of_shards_leads_only_to_whole_files_beside_it(
    what: str, folder: Path, tmp_path: Path, happened: Happened
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / FIRST)  # what "../" would read
    change, message = MAPS[what]
    write_index(folder, change(places(folder)))
    with cheap(60), pytest.raises(UserError, match=message) as error:
        load_huggingface(folder)
    assert len(str(error.value)) < 800
    happened(f"The index of a sharded Hugging Face folder with {what}", error.value)


def bomb() -> bytes:
    """A small zip that unpacks to 20 MB, in the form of a checkpoint of torch."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(20 << 20))
    return out.getvalue()


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        ("a zip bomb", bomb, "is refused: it would unpack to"),
        ("a header of 2**60 bytes", lambda: (2**60).to_bytes(8, "little") + b"{", "cannot be read as weights"),
        ("no bytes", lambda: b"", "cannot be read as weights"),
    ],
)
def test_a_shard_that_is_no_shard_is_refused(
    what: str, content: Callable[[], bytes], message: str, folder: Path, happened: Happened
) -> None:
    (folder / FIRST).write_bytes(content())
    with cheap(60, megabytes=200), pytest.raises(UserError, match=message) as error:
        load_huggingface(folder)
    happened(f"A shard of a Hugging Face folder that is {what}", error.value)


@pytest.mark.fault("Numbers")
def test_a_shard_whose_weights_are_not_finite_is_refused(folder: Path, happened: Happened) -> None:
    weights = load_file(folder / FIRST)
    save_file({key: value * torch.nan for key, value in weights.items()}, folder / FIRST)
    with pytest.raises(UserError, match="are not finite") as error:
        load_huggingface(folder)
    happened("NaN in a shard of a Hugging Face folder", error.value)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"shortest_edge": 10**9}}, "short_side is 1000000000, but must be between 1 and 8,192"),
        ({"size": {"shortest_edge": -1}}, "short_side is -1, but must be between"),
        ({"size": {"shortest_edge": "${oc.env:VIVIT_SECRET}"}}, "the size for short_side is '.*', but must be"),
        ({"size": {"height": 10, "width": 20}}, "size must be a shortest_edge, or a height and an equal width"),
        ({"size": [1, 2]}, "the size for short_side is a list, but must be a whole number"),
        ({"crop_size": {"width": 3}}, "the size for crop is None, but must be a whole number"),
        ({"crop_size": True}, "the size for crop is True, but must be a whole number"),
    ],
)
def test_absurd_preprocessing_is_refused(
    change: dict[str, Any], message: str, folder: Path, happened: Happened
) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as error:
        resizing(folder)
    happened(f"A Hugging Face folder that is scored, with {change} in its preprocessing", error.value)


@pytest.mark.fault("Strangers' files")
def test_names_of_a_folder_that_is_scored_are_only_names(
    folder: Path,
    kinetics: Path,
    config: Config,
    tmp_path: Path,
    happened: Happened,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VIVIT_SECRET", SECRET)
    trap = tmp_path / "trap"
    texts = [text for text in filled(HOSTILE, trap, tmp_path / "secret") if isinstance(text, str)]
    file = folder / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"id2label": dict(enumerate(texts))}))
    with pytest.raises(UserError, match=f"config.json names {len(texts)} classes, but the weights have 3 logits"):
        score(config, folder, kinetics)
    file.write_text(json.dumps(stored | {"id2label": dict(enumerate([texts[0], *texts[3:5]]))}))
    with pytest.raises(UserError, match="unknown label 'air drumming'") as error:
        score(config, folder, kinetics)
    assert SECRET not in str(error.value)
    assert not trap.exists()
    happened("Interpolations of OmegaConf and Hydra as the class names of a Hugging Face folder", error.value)


def flax_tree() -> dict[str, Any]:
    return {"params": dict(to_scenic(tiny("vivit_fe")))}


BLOCK = "SpatialTransformer/encoderblock_{}/LayerNorm_0/scale"
BLOCKS = {BLOCK.format(i): np.ones(1) for i in range(2000)}
TREES: dict[str, tuple[dict[str, Any], str]] = {
    "2,000 blocks": (BLOCKS, "depth is 2000, but must be between"),
    "tubelets of nothing": ({"embedding/kernel": np.ones((0, 0, 0, 3, 32))}, "does not hold the weights"),
    "a kernel of one number": ({"embedding/kernel": np.ones(1)}, "does not hold the weights"),
    "positions of no square": (
        {"SpatialTransformer/posembed_input/pos_embedding": np.ones((1, 8, 32))},
        "7 positions per frame, which fit neither a square",
    ),
    "NaN": ({"output_projection/bias": np.full(3, np.nan)}, "are not finite"),
}


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=[] if w in ("NaN", "2,000 blocks") else pytest.mark.slow) for w in TREES]
)
def test_absurd_flax_trees_that_are_scored_are_refused(
    what: str, kinetics: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    change, message = TREES[what]
    tree = flax_tree()
    tree["params"] |= change
    write_flax(tmp_path / "checkpoint_1", tree)
    with cheap(60), pytest.raises(UserError, match=message) as error:
        score(config, tmp_path / "checkpoint_1", kinetics)
    assert len(str(error.value)) < 500
    happened(f"A checkpoint of the authors' code with {what}, and ckpt_path=FILE", error.value)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    "content", [b"\x81" * 5000, pytest.param(b"\x81\xa6params\xc7\x03\x09abc", marks=pytest.mark.slow)]
)
def test_damaged_flax_files_that_are_scored_are_refused(
    content: bytes, kinetics: Path, config: Config, tmp_path: Path, happened: Happened
) -> None:
    (tmp_path / "checkpoint_1").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a flax checkpoint") as error:
        score(config, tmp_path / "checkpoint_1", kinetics)
    happened(f"A flax file of {len(content)} bytes, and ckpt_path=FILE", error.value)
