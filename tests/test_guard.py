"""No cost grows unnoticed: benchmarks/guard.py, whose numbers are those of the locked torch."""

import copy
import json

import pytest
import torch
from guard import FILE, costs, grown

THEN = json.loads(FILE.read_text())


@pytest.mark.skipif(torch.__version__.partition("+")[0] != THEN["torch"], reason="made with another torch")
def test_nothing_costs_more_than_it_did() -> None:
    assert grown(costs(), THEN["costs"]) == []


def test_what_has_grown_is_named() -> None:
    then = THEN["costs"]
    assert grown(then, then) == []
    now = copy.deepcopy(then)
    now["vivit_fe"]["graph breaks"] += 1
    now["vivit_st"]["MFLOPs of ViViT-B, forward"] -= 1
    now["vivit_st"]["something new"] = 3
    was = then["vivit_fe"]["graph breaks"]
    assert sorted(grown(now, then)) == [
        f"vivit_fe: graph breaks: {was + 1}, was {was}",
        "vivit_st: something new: 3, was None",
    ]
