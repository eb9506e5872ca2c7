"""The authors' schedule, step by step, and who decays."""

import math

import pytest
import torch
from torch import nn

from vivit_train.models.vivit import MODELS, ModelName, ViViT
from vivit_train.training.optim import constant, cosine, parameter_groups, warmup_cosine

tiny = {"num_classes": 3, "frames": 4, "image_size": 8, "tubelet": (2, 4, 4), "dim": 8, "depth": 2, "heads": 2}


@pytest.mark.parametrize(("warm", "total"), [(0, 10), (3, 10), (2.5, 10), (5, 6), (250, 3000)])
def test_schedule_is_the_authors_formula(warm: float, total: int) -> None:
    factor = warmup_cosine(warm, total)
    for s in range(total):
        expected = (
            min(1.0, s / warm if warm else 1.0) * 0.5 * (1 + math.cos(math.pi * max(0, s - warm) / (total - warm)))
        )
        assert factor(s) == pytest.approx(expected, abs=1e-12)


def test_schedule_starts_at_zero_peaks_after_warm_up_and_ends_at_zero() -> None:
    factor = warmup_cosine(4, 20)
    values = [factor(s) for s in range(21)]
    assert values[0] == 0
    assert values[4] == max(values) == 1
    assert values[12] == pytest.approx(0.5)
    assert values[20] == pytest.approx(0, abs=1e-12)
    assert values[:5] == sorted(values[:5])
    assert values[4:] == sorted(values[4:], reverse=True)
    assert warmup_cosine(0, 20)(0) == 1


@pytest.mark.parametrize(("warm", "total"), [(10, 10), (20, 10), (0, 1)])
def test_schedule_survives_runs_shorter_than_their_warm_up(warm: float, total: int) -> None:
    factor = warmup_cosine(warm, total)
    for s in range(total + 1):
        assert 0 <= factor(s) <= 1
        if s < min(warm, total):
            assert factor(s) == pytest.approx(s / warm)


def test_torch_applies_the_factor_of_step_zero_first() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(2, 6))
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(
        [0.0, 0.2, 0.4, 0.4 * 0.5 * (1 + math.cos(math.pi / 4)), 0.2, 0.4 * (1 - 2**-0.5) / 2]
    )


def test_a_warmup_in_epochs_takes_whole_steps() -> None:
    assert [cosine(40, 10, 0.25)(step) for step in range(3)] == [warmup_cosine(2, 40)(step) for step in range(3)]
    assert [constant(40, 10, 0.2)(step) for step in (0, 1, 2, 39)] == [0, 0.5, 1, 1]
    assert constant(40, 10, 0)(0) == 1


@pytest.mark.parametrize("model", MODELS)
def test_matrices_decay_and_nothing_else_does(model: ModelName) -> None:
    net = ViViT(model, **tiny)
    decaying, others = torch.optim.AdamW(parameter_groups(net), weight_decay=0.05).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    name_of = {id(parameter): name for name, parameter in net.named_parameters()}
    names = [{name_of[id(parameter)] for parameter in group["params"]} for group in (decaying, others)]
    assert names[0] | names[1] == set(name_of.values())
    assert not names[0] & names[1]
    matrices = ("qkv.weight", "out.weight", "fc1.weight", "fc2.weight", "projection.weight", "head.weight")
    assert names[0] == {name for name in name_of.values() if name.endswith(matrices)}
    assert {"encoder.pos_embed", "encoder.norm.weight", "head.bias"} <= names[1]
    assert ("encoder.cls_token" in names[1]) == (model in ("vivit_st", "vivit_fe"))


def test_frozen_parameters_are_left_out() -> None:
    net = ViViT("vivit_st", **tiny)
    net.encoder.requires_grad_(False)
    groups = parameter_groups(net)
    assert [len(group["params"]) for group in groups] == [2, 2]  # tubelets and head
