"""The four models: their size and cost as in the paper, and what each may and may not see."""

from typing import Any

import pytest
import torch
from nets import CLASSES, randomize, tiny, videos
from parity import PAPER, cost
from torch import Tensor, nn

from vivit_train.models.layers import ActivationCheckpointing, Attention, uniform_frames
from vivit_train.models.vivit import MODELS, SIZES, ModelName, ViViT

every_model = pytest.mark.parametrize("model", MODELS)


def outputs_of(module: nn.Module) -> list[Tensor]:
    """A list that receives what `module` returns."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    return seen


@pytest.mark.parametrize(("model", "size", "kwargs", "million_parameters", "giga_multiply_adds"), PAPER)
def test_size_and_cost_are_the_papers(
    model: ModelName, size: str, kwargs: dict[str, Any], million_parameters: float, giga_multiply_adds: float
) -> None:
    parameters, computed, multiply_adds = cost(model, size, kwargs)
    assert parameters == pytest.approx(million_parameters, abs=0.005)
    # the counter leaves out what is no matrix product: softmax, norms, GELU
    assert multiply_adds == pytest.approx(giga_multiply_adds, rel=0.01)
    # with a cls token, less than one of the blocks is not computed: its keys and values are
    most = 1 / SIZES[size]["depth"] if model in ("vivit_st", "vivit_fe") else 0
    assert most / 2 <= 1 - computed / multiply_adds <= most


@every_model
def test_fresh_models_predict_nothing(model: ModelName) -> None:
    net = tiny(model)
    assert not net(videos(net)).any()


@every_model
def test_clips_of_a_batch_do_not_touch(model: ModelName) -> None:
    net = randomize(tiny(model))
    video = videos(net, batch=3)
    before = net(video)
    video[1] += 1
    change = (net(video) - before).abs().amax(1)
    assert change[1] > 1e-3
    assert change[[0, 2]].max() < 1e-6


@every_model
def test_eager_attention_computes_the_same(model: ModelName) -> None:
    net = randomize(tiny(model))
    video = videos(net)
    fused, eager = net(video), net.use_eager_attention()(video)
    torch.testing.assert_close(eager, fused, atol=1e-5, rtol=0)
    torch.testing.assert_close(net.use_eager_attention(False)(video), fused, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("model", "shapes"),  # of the maps of one clip and one block, and of vivit_fe's temporal encoder
    [
        ("vivit_st", {(1, 4, 25, 25)}),
        ("vivit_fe", {(4, 4, 7, 7), (1, 4, 5, 5)}),
        ("vivit_fsa", {(4, 4, 6, 6), (6, 4, 4, 4)}),
        ("vivit_fdp", {(6, 2, 4, 4), (4, 2, 6, 6)}),
    ],
)
def test_a_hook_sees_the_attention_maps(model: ModelName, shapes: set[tuple[int, ...]]) -> None:
    net = randomize(tiny(model))
    seen = [outputs_of(module.probabilities) for module in net.modules() if isinstance(module, Attention)]
    net(videos(net, batch=1))
    assert not any(seen)  # the fused kernel never writes them out
    net.use_eager_attention()(videos(net, batch=1))
    assert {tuple(attention.shape) for maps in seen for attention in maps} == shapes
    for maps in seen:
        assert maps
        for attention in maps:
            assert attention.min() >= 0
            torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe"])
def test_the_last_block_computes_the_cls_token_alone(model: ModelName) -> None:
    """The logits and gradients are those of a model that computes every token and leaves all but one unread."""
    net, whole = randomize(tiny(model)), randomize(tiny(model))
    for encoder in (whole.encoder, whole.temporal_encoder):
        if encoder is not None:
            last = encoder.blocks[-1]
            last.forward = lambda x, num_queries, last=last: type(last).forward(last, x)  # type: ignore[method-assign]
    seen = [outputs_of(one.encoder.blocks[-1]) for one in (net, whole)]
    for one in (net, whole):
        one(videos(one)).square().sum().backward()
    assert [tokens[0].shape[-2] for tokens in seen] == [1, whole.encoder.grid[0]]
    for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(net(videos(net)), whole(videos(whole)), atol=1e-5, rtol=0)


@every_model
@pytest.mark.parametrize("checkpointed", ["mlp", "block"])
def test_checkpointed_activations_change_nothing_but_memory(
    model: ModelName, checkpointed: ActivationCheckpointing
) -> None:
    results, kept = [], []
    for which in ("none", checkpointed):
        net = randomize(tiny(model, drop_path=0.5, checkpoint_activations=which)).train()
        torch.manual_seed(0)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            logits = net(videos(net, batch=4))
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in net.parameters())])
        kept.append(sum(sizes))
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)
    assert kept[1] < 0.9 * kept[0]


@every_model
def test_heads_by_name_share_one_classifier(model: ModelName) -> None:
    net = randomize(tiny(model, num_classes={"verb": 3, "noun": 4}))
    single = randomize(tiny(model, num_classes=7))
    logits = net(videos(net))
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"verb": (2, 3), "noun": (2, 4)}
    torch.testing.assert_close(torch.cat([logits["verb"], logits["noun"]], 1), single(videos(single)))


@every_model
@pytest.mark.parametrize("image_size", [(8, 16), (16, 8), 8])
def test_input_need_not_be_square(model: ModelName, image_size: int | tuple[int, int]) -> None:
    net = randomize(tiny(model, image_size=image_size))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert net.grid == (4, height // 4, width // 4)
    assert net(torch.rand(2, 3, 8, height, width)).shape == (2, CLASSES)


def test_uniform_frames_are_the_authors() -> None:
    assert uniform_frames(32, 8).tolist() == [4, 7, 11, 14, 18, 21, 25, 28]
    assert uniform_frames(32, 32).tolist() == list(range(32))
    assert uniform_frames(4, 8).tolist() == [0, 1, 2, 3]


@every_model
def test_uniform_sampling_sees_the_sampled_frames_alone(model: ModelName) -> None:
    net = randomize(tiny(model, tubelet=(1, 4, 4), sampled_frames=3))
    assert net.grid[0] == 3
    sampled = uniform_frames(8, 3).tolist()
    video = videos(net)
    before = net(video)
    others = [frame for frame in range(8) if frame not in sampled]
    video[:, :, others] += 1
    assert torch.equal(net(video), before)
    for frame in sampled:
        changed = video.clone()
        changed[:, :, frame] += 1
        assert not torch.allclose(net(changed), before, atol=1e-3)


@every_model
def test_tokens_are_in_the_order_time_row_column(model: ModelName) -> None:
    net = tiny(model)
    tokens: list[Tensor] = []
    net.encoder.register_forward_pre_hook(lambda _module, inputs: tokens.append(inputs[0].flatten(1, -2)))
    video = videos(net, batch=1)
    net(video)
    video[:, :, 4:6, 4:8, 8:12] += 1  # time 2, row 1, column 2 of 4 x 2 x 3
    net(video)
    changed = (tokens[0] - tokens[1]).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [2 * 6 + 1 * 3 + 2]


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe"])
def test_pooling_takes_the_cls_token_or_the_mean(model: ModelName) -> None:
    for pool, pick in (("cls", lambda x: x[..., 0, :]), ("mean", lambda x: x.mean(-2))):
        net = randomize(tiny(model, pool=pool))
        last = net.temporal_encoder or net.encoder
        assert (last.cls_token is not None) == (pool == "cls")
        tokens = outputs_of(last.norm)
        torch.testing.assert_close(net.features(videos(net)), pick(tokens[0]))


@pytest.mark.parametrize("model", ["vivit_fsa", "vivit_fdp"])
def test_models_without_cls_token_take_the_mean_over_all_tokens(model: ModelName) -> None:
    net = randomize(tiny(model, pool="cls"))
    assert not any("cls_token" in name for name, _ in net.named_parameters())
    tokens = outputs_of(net.encoder.norm)
    torch.testing.assert_close(net.features(videos(net)), tokens[0].mean((1, 2)))


@pytest.mark.parametrize(("temporal_depth", "sees_order"), [(0, False), (4, True)])
def test_only_a_temporal_encoder_sees_the_order_of_time(temporal_depth: int, sees_order: bool) -> None:
    net = randomize(tiny("vivit_fe", temporal_depth=temporal_depth))
    video = videos(net)
    shuffled = video.unflatten(2, (4, 2))[:, :, [2, 0, 3, 1]].flatten(2, 3)  # whole tubelets
    assert torch.allclose(net(video), net(shuffled), atol=1e-5) == (not sees_order)


def test_the_two_orders_of_factorized_self_attention_differ() -> None:
    first = randomize(tiny("vivit_fsa", order="space_time"))
    second = tiny("vivit_fsa", order="time_space")
    second.load_state_dict(first.state_dict())
    assert not torch.allclose(first(videos(first)), second(videos(first)), atol=1e-3)


def test_dot_product_heads_attend_over_time_first_and_space_second() -> None:
    net = randomize(tiny("vivit_fdp"))
    attention = net.encoder.blocks[0].attention
    x = torch.randn(1, 4, 6, 16)
    for half, reaches in ((slice(0, 8), "time"), (slice(8, 16), "space")):
        with torch.no_grad():
            attention.out.weight.zero_()
            attention.out.weight[:, half] = torch.eye(16)[:, half]
        changed = x.clone()
        changed[0, 2, 3] += 1  # time 2, place 3
        reached = (attention(changed) - attention(x)).abs().amax(-1)[0] > 1e-6
        expected = torch.zeros(4, 6, dtype=torch.bool)
        expected[(slice(None), 3) if reaches == "time" else (2, slice(None))] = True
        assert torch.equal(reached, expected)


@every_model
def test_drop_path_rises_linearly_in_each_encoder(model: ModelName) -> None:
    net = tiny(model, depth=5, temporal_depth=3, drop_path=0.4)
    assert [block.drop_path.drop_prob for block in net.encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    if net.temporal_encoder is not None:
        assert [b.drop_path.drop_prob for b in net.temporal_encoder.blocks] == pytest.approx([0, 0.2, 0.4])


@every_model
def test_drop_path_drops_whole_clips(model: ModelName) -> None:
    torch.manual_seed(0)
    net = randomize(tiny(model, drop_path=0.5)).train()
    branches = outputs_of(net.encoder.blocks[-1].drop_path)
    net(videos(net, batch=32))
    for branch in branches:
        dropped = (branch == 0).flatten(1)  # fsa's attention over time comes as [B, t, n, D] too
        assert torch.equal(dropped.any(1), dropped.all(1))
        assert 0 < dropped.all(1).sum() < 32
    net.eval()
    assert torch.equal(net(videos(net)), net(videos(net)))


@every_model
def test_every_parameter_learns(model: ModelName) -> None:
    net = randomize(tiny(model)).train()
    nn.functional.cross_entropy(net(videos(net)), torch.tensor([0, 3])).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize(
    ("model", "kwargs", "message"),
    [
        ("vivit_st", {"frames": 7}, "frames 7 is not a multiple of the tubelet's 2"),
        ("vivit_st", {"image_size": (9, 12)}, "height 9 "),
        ("vivit_st", {"image_size": (8, 13)}, "width 13 "),
        ("vivit_st", {"frames": 0}, "frames 0 "),
        ("vivit_fe", {"dim": 18}, "dim 18 is not a multiple of heads 4"),
        ("vivit_fdp", {"dim": 15, "heads": 3}, "heads must be even, not 3"),
        ("vivit_fe", {"sampled_frames": 4}, "tubelet\\[0\\] must be 1, not 2"),
        ("vivit_fe", {"sampled_frames": 0, "tubelet": (1, 4, 4)}, "sampled_frames must be at least 1, not 0"),
        ("vivit", {}, "model is 'vivit'; it must be one of vivit_st, "),
        ("vivit_fdp", {"heads": 3, "frames": 7}, "frames 7 .*; dim 16 .*; .*even"),  # all at once
    ],
)
def test_models_that_cannot_be_say_why(model: ModelName, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(model, **kwargs)


def test_sizes_are_checked_and_overridden() -> None:
    with pytest.raises(ValueError, match="size is 'XL'; it must be one of Ti, S, B, L, H"):
        ViViT.from_size("vivit_st", "XL", num_classes=2)
    net = ViViT.from_size("vivit_st", "Ti", num_classes=2, depth=1, heads=None, frames=2, image_size=32)
    assert (len(net.encoder.blocks), net.encoder.blocks[0].attention.heads, net.head.in_features) == (1, 3, 192)


@pytest.mark.parametrize("shape", [(2, 8, 3, 8, 12), (2, 3, 8, 12, 8), (2, 3, 4, 8, 12), (3, 8, 8, 12)])
def test_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    net = tiny("vivit_fe")
    with pytest.raises(ValueError, match=r"\[C, T, H, W\] = \[3, 8, 8, 12\]"):
        net(torch.zeros(shape))
