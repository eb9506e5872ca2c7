"""The relevance of tubelets is the product of the layers' matrices over all tokens, built here one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vivit_train.models.layers import Attention
from vivit_train.models.probe import SIDE, FrameProbe
from vivit_train.models.relevance import Method, attention_maps, relevance
from vivit_train.models.vivit import ModelName, ViViT

MODELS: list[tuple[ModelName, dict[str, Any]]] = [
    ("vivit_st", {}),
    ("vivit_st", {"pool": "mean"}),
    ("vivit_st", {"reg_tokens": 2}),
    ("vivit_fe", {}),
    ("vivit_fe", {"temporal_depth": 0}),
    ("vivit_fe", {"pool": "mean"}),
    ("vivit_fe", {"pool": "mean", "fc_norm": True, "temporal_depth": 0}),
    ("vivit_fsa", {}),
    ("vivit_fsa", {"order": "time_space"}),
    ("vivit_fdp", {}),
]
NAMES = [" ".join([model, *(f"{k}={v}" for k, v in options.items())]) for model, options in MODELS]


def small(model: ModelName, options: dict[str, Any]) -> ViViT:
    """As many time indices as places (4), so that a confusion of the axes has no other shape."""
    torch.manual_seed(0)
    sizes = {"frames": 8, "image_size": 8, "tubelet": (2, 4, 4), "dim": 8, "depth": 2, "heads": 2}
    net = ViViT(model, num_classes=3, **{**sizes, "temporal_depth": 2, **options}).double().eval()  # type: ignore[arg-type]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def weights(net: ViViT, video: Tensor, method: Method) -> list[Tensor]:
    with attention_maps(net) as maps:
        logits = net(video)
    if method == "rollout":
        return [m.detach().mean(1) for m in maps]
    gradients = torch.autograd.grad(logits.max(), maps)
    return [(m * g).clamp(min=0).detach().mean(1) for m, g in zip(maps, gradients, strict=True)]


def layer(method: Method, matrix: Tensor) -> Tensor:
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return (eye + matrix) / 2 if method == "rollout" else eye + matrix


def over_all_tokens(axis: str, matrices: Tensor, t: int, n: int) -> Tensor:
    """The matrix over t x n tokens of attention over one axis."""
    full = torch.zeros(t, n, t, n, dtype=matrices.dtype)
    for i in range(t if axis == "space" else n):
        if axis == "space":
            full[i, :, i, :] = matrices[i]
        else:
            full[:, i, :, i] = matrices[i]
    return full.reshape(t * n, t * n)


def expected(net: ViViT, maps: list[Tensor], method: Method) -> Tensor:
    t, n = net.grid[0], net.grid[1] * net.grid[2]

    def encoder(found: list[Tensor], has_cls: bool, tokens: int) -> Tensor:
        """The row of the pooled token, without the class token and registers."""
        product = torch.eye(found[0].shape[-1], dtype=found[0].dtype)
        for matrix in found:
            product = layer(method, matrix) @ product
        return product[0, 1 : 1 + tokens] if has_cls else passed(product)[:tokens, :tokens].mean(0)

    def passed(product: Tensor) -> Tensor:
        """Without what the residual connections alone pass on."""
        return product - torch.eye(len(product), dtype=product.dtype) if method == "gradient" else product

    has_cls = net.encoder.cls_token is not None
    if net.model == "vivit_st":
        return encoder([m[0] for m in maps], has_cls, t * n).reshape(t, n)
    if net.model == "vivit_fe":
        spatial, temporal = maps[:2], maps[2:]
        weight = encoder([m[0] for m in temporal], has_cls, t) if temporal else torch.full((t,), 1 / t).double()
        return torch.stack([encoder([m[i] for m in spatial], has_cls, n) * weight[i] for i in range(t)])
    product = torch.eye(t * n, dtype=torch.float64)
    axes = ["space", "time"] if net.model == "vivit_fsa" and net.order == "space_time" else ["time", "space"]
    for pair in zip(maps[::2], maps[1::2], strict=True):
        full = [over_all_tokens(axis, m, t, n) for axis, m in zip(axes, pair, strict=True)]
        if net.model == "vivit_fdp":
            product = layer(method, (full[0] + full[1]) / 2) @ product
        else:
            product = layer(method, full[1]) @ layer(method, full[0]) @ product
    return passed(product).mean(0).reshape(t, n)


@pytest.mark.parametrize("method", ["rollout", "gradient"])
@pytest.mark.parametrize(("model", "options"), MODELS, ids=NAMES)
def test_the_relevance_is_the_product_of_the_layers(
    model: ModelName, options: dict[str, Any], method: Method
) -> None:
    net = small(model, options)
    video = torch.randn(1, *net.input_shape, dtype=torch.float64)
    found, logits = relevance(net, video, method=method)
    torch.testing.assert_close(found[0].flatten(1), expected(net, weights(net, video, method), method))
    torch.testing.assert_close(logits, net(video).detach())
    assert found.shape == (1, *net.grid)
    assert found.min() >= 0
    if method == "rollout":
        assert found.sum() <= 1 + 1e-9


@pytest.mark.parametrize(("model", "options"), MODELS, ids=NAMES)
def test_clips_of_a_batch_do_not_mix(model: ModelName, options: dict[str, Any]) -> None:
    net = small(model, options)
    videos = torch.randn(3, *net.input_shape, dtype=torch.float64)
    together, _ = relevance(net, videos)
    for video, found in zip(videos, together, strict=True):
        torch.testing.assert_close(relevance(net, video[None])[0][0], found)


def test_the_class_can_be_chosen() -> None:
    net = small("vivit_fe", {})
    video = torch.randn(1, *net.input_shape, dtype=torch.float64)
    found = [relevance(net, video, [k])[0] for k in range(3)]
    best = int(net(video).argmax())
    torch.testing.assert_close(found[best], relevance(net, video)[0])
    assert not torch.allclose(found[0], found[1])


def test_nothing_is_left_behind() -> None:
    net = small("vivit_fsa", {})
    relevance(net, torch.randn(1, *net.input_shape, dtype=torch.float64))
    assert not any(getattr(module, "eager", False) or module._forward_hooks for module in net.modules())


def small_probe(model: ModelName, **options: Any) -> FrameProbe:
    """6 x 6 patches, so that each of 3 x 3 regions has four."""
    torch.manual_seed(0)
    sizes = {"frames": 4, "image_size": 24, "tubelet": (1, 4, 4), "dim": 8, "depth": 3, "heads": 2}
    net = FrameProbe(model, num_classes=3, **{**sizes, **options}).double().eval()  # type: ignore[arg-type]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def without_attention(net: FrameProbe) -> FrameProbe:
    """Attention adds nothing to the tokens, so the relevance is what the head takes from them."""
    for module in net.modules():
        if isinstance(module, Attention):
            for parameter in module.out.parameters():
                torch.nn.init.zeros_(parameter)
    return net


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
def test_the_relevance_of_a_probe_is_what_each_patch_adds_to_the_logit(model: ModelName) -> None:
    net = without_attention(small_probe(model, layers=2))
    video = torch.randn(1, *net.input_shape, dtype=torch.float64)
    found, logits = relevance(net, video, [1])
    (x,) = net.tokens_after(video, [2])
    x_tnD = x[0].reshape(-1, x.shape[-1])[-4 * 36 :] if model == "vivit_st" else x[0, :, -36:]
    x_trcD = x_tnD.reshape(4, 6, 6, -1).detach()
    # The head has the mean of each region, a quarter of each of its patches, and its weights are [t, region, D].
    weight = net.head.weight[1].detach().view(4, SIDE, SIDE, -1) / 4
    weight_trcD = weight.repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = ((x_trcD - x_trcD.mean((0, 1, 2))) * weight_trcD).sum(-1).clamp(min=0)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(logits, net(video).detach())


def test_the_relevance_of_a_probe_adds_up_over_its_poolings() -> None:
    poolings = [
        {"space": "grid", "time": "ordered", "layers": 1},
        {"space": "mean", "time": "mean_diff", "layers": 3},
        {"space": "grid", "time": "differences", "layers": 2, "input": "foreground"},
        {"space": "cls", "time": "mean", "layers": 2},
    ]
    whole = without_attention(small_probe("vivit_fe", **poolings[0], more_poolings=poolings[1:]))
    video = torch.randn(2, *whole.input_shape, dtype=torch.float64)
    found, _ = relevance(whole, video, [2])
    used, total = 0, torch.zeros_like(found)
    for pooling in poolings:
        part = without_attention(small_probe("vivit_fe", **pooling))
        size = part.head.in_features
        state = {name: value for name, value in whole.state_dict().items() if name != "head.weight"}
        part.load_state_dict(state | {"head.weight": whole.head.weight[:, used : used + size]})
        total += relevance(part, video, [2])[0]
        used += size
    assert used == whole.head.in_features
    torch.testing.assert_close(found, total)


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe"])
def test_the_class_token_of_a_probe_passes_its_relevance_to_what_it_attends_to(model: ModelName) -> None:
    net = small_probe(model, space="cls", time="mean", layers=1)
    video = torch.randn(2, *net.input_shape, dtype=torch.float64)
    found, _ = relevance(net, video)
    assert (found.flatten(1).sum(1) > 0).all()
    assert found.std() > 0.1 * found.mean()
    assert relevance(without_attention(net), video)[0].count_nonzero() == 0


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
def test_clips_of_a_batch_do_not_mix_in_a_probe(model: ModelName) -> None:
    more = [{"space": "mean", "time": "mean_std", "layers": 3, "input": "foreground"}]
    net = small_probe(model, layers=2, more_poolings=more)
    videos = torch.randn(3, *net.input_shape, dtype=torch.float64)
    together, _ = relevance(net, videos)
    for video, found in zip(videos, together, strict=True):
        torch.testing.assert_close(relevance(net, video[None])[0][0], found)


def test_a_probe_has_no_rollout() -> None:
    net = small_probe("vivit_fe")
    with pytest.raises(ValueError, match="has no rollout"):
        relevance(net, torch.randn(1, *net.input_shape, dtype=torch.float64), method="rollout")
