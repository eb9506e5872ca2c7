"""The authors' EPIC models have one output, nouns before verbs: read and written by the name of each row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import randomize, tiny, videos
from parity import Tree
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.huggingface import save_huggingface
from vivit_train.models.weights.load import load_pretrained
from vivit_train.models.weights.scenic import load_scenic, read_scenic, save_scenic, to_scenic
from vivit_train.utils.errors import UserError

EPIC = {"verb": 97, "noun": 300}  # as the reader of EPIC-KITCHENS-100 has them
VERB, NOUN = 1000.0, 2000.0


def of_classes(heads: Mapping[str, int]) -> Tensor:
    """A number for each row that says which class it is: 1000 + the verb, 2000 + the noun."""
    return torch.cat([{"verb": VERB, "noun": NOUN}[head] + torch.arange(float(n)) for head, n in heads.items()])


def epic_net(heads: Mapping[str, int] = EPIC) -> ViViT:
    net = randomize(tiny("vivit_fe", num_classes=heads))
    with torch.no_grad():
        net.head.bias.copy_(of_classes(heads))
        net.head.weight[:, 0] = of_classes(heads)
    return net


def epic_tree() -> Tree:
    """As the authors' code has it (`class_splits` 300, 97): rows 0 to 299 are nouns, rows 300 to 396 verbs."""
    tree = to_scenic(randomize(tiny("vivit_fe", num_classes=397)))
    rows = np.concatenate([NOUN + np.arange(300), VERB + np.arange(97)]).astype(np.float32)
    tree["output_projection/bias"] = rows
    tree["output_projection/kernel"] = np.ascontiguousarray(np.tile(rows, (16, 1)))
    return tree


def written(tree: Tree, path: Path) -> str:
    net = load_scenic(tree, model="vivit_fe", frames=8, image_size=(8, 12), pool="cls")
    save_scenic(net, path)  # with a single head, as the authors' code has it
    return str(path)


@pytest.mark.parametrize("heads", [EPIC, {"noun": 300, "verb": 97}])
def test_a_start_from_their_epic_tree_puts_each_class_in_its_row(heads: dict[str, int], tmp_path: Path) -> None:
    net = tiny("vivit_fe", num_classes=heads)
    report = load_pretrained(net, written(epic_tree(), tmp_path / "checkpoint"))
    assert report.rows["head.bias"] == "copied (rows: noun, verb)"
    assert torch.equal(net.head.bias, of_classes(heads))
    assert torch.equal(net.head.weight, of_classes(heads)[:, None].expand(-1, 16))
    logits = net(videos(net))
    assert {head: value.shape[1] for head, value in logits.items()} == heads


def test_what_is_written_has_the_nouns_first_and_comes_back(tmp_path: Path) -> None:
    net = epic_net()
    save_scenic(net, tmp_path / "checkpoint_1")
    tree = read_scenic(tmp_path / "checkpoint_1")
    assert np.array_equal(tree["output_projection/bias"], epic_tree()["output_projection/bias"])
    assert np.array_equal(tree["output_projection/kernel"][0], epic_tree()["output_projection/bias"])
    told: dict[str, Any] = {"model": "vivit_fe", "frames": 8, "image_size": (8, 12), "pool": "cls"}
    again = load_scenic(tree, **told, num_classes=EPIC)
    assert all(torch.equal(value, again.get_parameter(name)) for name, value in net.named_parameters())
    started = tiny("vivit_fe", num_classes=EPIC)
    load_pretrained(started, str(tmp_path / "checkpoint_1"))
    assert all(torch.equal(value, started.get_parameter(name)) for name, value in net.named_parameters())


@pytest.mark.parametrize("heads", [{"verb": 3, "noun": 4}, {"verb": 300, "noun": 97}, {"hand": 97, "tool": 300}])
def test_heads_that_fit_only_by_their_sum_are_refused(heads: dict[str, int], tmp_path: Path) -> None:
    rows = sum(heads.values())
    save_scenic(randomize(tiny("vivit_fe", num_classes=rows)), tmp_path / "checkpoint_1")
    net = tiny("vivit_fe", num_classes=heads)
    one, other = heads
    message = (
        rf"has a single output of {rows} rows, which fits the heads {one} \d+ \+ {other} \d+ only by their sum: .*"
        rf"init\.heads=\[{one},{other}\] or init\.heads=\[{other},{one}\]"
    )
    with pytest.raises(UserError, match=message):
        load_pretrained(net, str(tmp_path / "checkpoint_1"))
    source = read_scenic(tmp_path / "checkpoint_1")["output_projection/bias"]
    for order in ([one, other], [other, one]):
        load_pretrained(net, str(tmp_path / "checkpoint_1"), heads=order)
        first = net.head.bias[: heads[one]] if order[0] == one else net.head.bias[heads[one] :]
        np.testing.assert_array_equal(first.detach().numpy(), source[: heads[order[0]]])


def test_a_hugging_face_model_without_names_is_no_model_of_two_heads(tmp_path: Path) -> None:
    theirs, names = randomize(tiny("vivit_st", image_size=8, num_classes=5)), [f"LABEL_{i}" for i in range(5)]
    save_huggingface(theirs, tmp_path, classes=names, mean=[0.5] * 3, std=[0.5] * 3, short_side=8)
    with pytest.raises(UserError, match=r"fits the heads verb 2 \+ noun 3 only by their sum"):
        load_pretrained(tiny("vivit_st", image_size=8, num_classes={"verb": 2, "noun": 3}), str(tmp_path))


def test_a_state_dict_of_ours_has_our_order(tmp_path: Path) -> None:
    net, started = epic_net(), tiny("vivit_fe", num_classes=EPIC)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    load_pretrained(started, str(tmp_path / "net.safetensors"))
    assert torch.equal(started.head.bias, net.head.bias)


@pytest.mark.parametrize(
    ("heads", "order", "message"),
    [
        (EPIC, ["noun"], "must name each head once: verb, noun"),
        (EPIC, ["noun", "noun"], "must name each head once: verb, noun"),
        (397, ["noun", "verb"], "the model has a single head"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(heads: Any, order: list[str], message: str, tmp_path: Path) -> None:
    path = written(epic_tree(), tmp_path / "checkpoint")
    with pytest.raises(UserError, match=rf"init\.heads=\[{','.join(order)}\]: {message}"):
        load_pretrained(tiny("vivit_fe", num_classes=heads), path, heads=order)
