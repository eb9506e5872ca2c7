"""Checkpoint files of flax, as the authors' code writes them: read and written without JAX, or refused."""

import contextlib
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from nets import counted, randomize, tiny
from parity import GOLDENS, Tree
from test_exchange import to_scenic

from vivit_train.models.vivit import MODELS, ModelName, ViViT
from vivit_train.models.weights.flax_file import read_flax, write_flax
from vivit_train.models.weights.scenic import load_scenic, read_scenic, save_scenic
from vivit_train.utils.errors import UserError

WRITTEN_BY_FLAX = GOLDENS / "scenic" / "checkpoint_12"  # flax 0.12.8, a train state with optax's momentum


def nested(tree: Tree) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, value in tree.items():
        node = root
        for part in path.split("/")[:-1]:
            node = node.setdefault(part, {})
        node[path.split("/")[-1]] = value
    return root


def assert_same(got: Tree, want: Tree) -> None:
    assert set(got) == set(want)
    for path, value in want.items():
        assert got[path].dtype == value.dtype
        np.testing.assert_array_equal(got[path], value, err_msg=path)


def test_a_file_that_flax_wrote_is_read() -> None:
    assert_same(read_scenic(WRITTEN_BY_FLAX), to_scenic(counted()))
    net = load_scenic(
        read_scenic(WRITTEN_BY_FLAX), model="vivit_fe", frames=8, image_size=(8, 12), pool="cls"
    ).state_dict()
    assert all(torch.equal(net[name], value) for name, value in counted().state_dict().items())
    assert read_flax(WRITTEN_BY_FLAX)["global_step"] == 12


def test_the_last_step_of_a_folder_is_read(tmp_path: Path) -> None:
    for step, seed in ((9, 0), (100, 1), (20, 2)):
        save_scenic(randomize(tiny("vivit_st"), seed), tmp_path / f"checkpoint_{step}")
    (tmp_path / "checkpoint_100000.tmp").write_bytes(b"")
    assert_same(read_scenic(tmp_path), to_scenic(randomize(tiny("vivit_st"), 1)))


@pytest.mark.parametrize("model", MODELS)
def test_files_come_back_exactly(model: ModelName, tmp_path: Path) -> None:
    net = randomize(tiny(model))
    save_scenic(net, tmp_path / "weights")
    assert_same(read_scenic(tmp_path / "weights"), to_scenic(net))


@pytest.fixture(scope="module")
def flax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what flax wrote from `flax_net()`, and of what it read of ours."""
    if importlib.util.find_spec("flax") is None:
        pytest.skip("flax is not installed")
    folder = tmp_path_factory.mktemp("flax")
    np.savez(folder / "tree.npz", **to_scenic(flax_net()))
    (folder / "ours").mkdir()
    save_scenic(flax_net(), folder / "ours" / "checkpoint_0")
    script = Path(__file__).parent / "write_with_flax.py"
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def flax_net() -> ViViT:
    return randomize(tiny("vivit_fe", depth=11))  # as text, encoderblock_10 is before encoderblock_2


@pytest.mark.parametrize("form", ["train state", "before optax", "before linen", "bare", "params"])
def test_every_form_that_the_authors_wrote_is_read(flax: Path, form: str) -> None:
    assert_same(read_scenic(flax / form), to_scenic(flax_net()))


def test_flax_reads_ours(flax: Path) -> None:
    with np.load(flax / "ours.npz") as file:
        assert_same({name: file[name] for name in file.files}, to_scenic(flax_net()))


def test_big_arrays_in_pieces_and_bfloat16_are_read(flax: Path) -> None:
    got = read_scenic(flax / "odd")
    with np.load(flax / "odd.npz") as file:
        np.testing.assert_array_equal(got["a"], file["a"])
        np.testing.assert_array_equal(got["b/c"], file["c"])
    assert read_flax(flax / "odd")["scalar"] == 0.5


def test_bit_errors_are_survived(tmp_path: Path) -> None:
    whole, draw = WRITTEN_BY_FLAX.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in draw.integers(0, len(data), size=8):
            data[place] = draw.integers(256)
        (tmp_path / "x").write_bytes(data)
        with contextlib.suppress(UserError):  # or the errors are in numbers
            read_scenic(tmp_path / "x")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.99])
def test_truncated_files_are_refused(share: float, tmp_path: Path) -> None:
    data = WRITTEN_BY_FLAX.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="cut cannot be read as a flax checkpoint"):
        read_scenic(tmp_path / "cut")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def array(shape: Any, dtype: str, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


@pytest.mark.parametrize(
    "value",
    [
        array((1,), "object", bytes(8)),
        array((1,), "O", bytes(8)),
        array((1,), "O,O", bytes(16)),
        array((1,), "no such type", bytes(8)),
        array((3,), "float32", bytes(8)),
        array((-1, 0), "float32", bytes(8)),
        msgpack.ExtType(1, b"\x93"),
        msgpack.ExtType(9, b""),
        {"__msgpack_chunked_array__": True},
        {"__msgpack_chunked_array__": True, "shape": {"0": 5}, "chunks": {"0": 3}},
    ],
)
def test_arrays_that_are_none_are_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(msgpack.packb({"params": {"embedding": {"kernel": value}}}))
    with pytest.raises(UserError, match="odd cannot be read as a flax checkpoint"):
        read_scenic(tmp_path / "odd")


def test_files_of_other_kinds_are_refused_and_execute_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    pickled = pickle.dumps({"params": Malicious(trap)})
    for content in (pickled, msgpack.packb(pickled), b"hello", msgpack.packb([1]), b"\x81" * 5000):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(UserError, match="foreign"):
            read_scenic(tmp_path / "foreign")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"params": {}}, "holds no parameters$"),
        ({"optimizer": {"state": {}}}, "holds no parameters$"),
        ({"optimizer": 3}, "holds no parameters$"),
        (
            {"params": {"embedding": {"kernel": [1, 2]}}},
            "holds no parameters: 'embedding/kernel' is not an array",
        ),
    ],
)
def test_trees_without_parameters_are_refused(tree: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_flax(tmp_path / "tree", tree)
    with pytest.raises(UserError, match=message):
        read_scenic(tmp_path / "tree")


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is neither a file nor a folder with checkpoint_<step> files"):
        read_scenic(tmp_path / "nowhere")
    (tmp_path / "checkpoint_3").mkdir()
    with pytest.raises(UserError, match="checkpoint_3 is a folder"):
        read_scenic(tmp_path)
