"""Masks, visible tokens, targets and decoder of self-pretraining; the loss is that of transformers' VideoMAE."""

from typing import Any

import pytest
import torch
from nets import randomize, tiny, videos

from vivit_train.models.masked import (
    Decoder,
    at_places,
    clip_losses,
    problems_of,
    scales,
    targets,
    tube_masks,
    tubelets,
    visible_tokens,
    whole_clip,
)
from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.load import load_pretrained

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element")  # the head of a model without classes
MODELS: tuple[ModelName, ...] = ("vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp")


@pytest.mark.parametrize(
    ("places", "ratio", "masked"), [(196, 0.9, 176), (196, 0.75, 147), (16, 0.75, 12), (4, 0.99, 3), (4, 0.01, 1)]
)
def test_a_mask_has_exactly_its_share_and_depends_on_its_seed_alone(
    places: int, ratio: float, masked: int
) -> None:
    kept_Bk, masked_Bm = tube_masks([3, 4, 3], places, ratio)
    assert masked_Bm.shape == (3, masked)
    together = torch.cat([kept_Bk, masked_Bm], dim=1).sort(1).values
    assert torch.equal(together, torch.arange(places).expand(3, -1))
    assert torch.equal(masked_Bm[0], masked_Bm[2])
    assert torch.equal(tube_masks([4], places, ratio)[1][0], masked_Bm[1])
    assert (masked_Bm.diff() > 0).all()
    if places == 196:
        assert not torch.equal(masked_Bm[0], masked_Bm[1])


def test_all_places_are_masked_equally_often() -> None:
    _, masked_Bm = tube_masks(range(2000), 9, 2 / 3)
    shares = masked_Bm.flatten().bincount() / 2000
    assert shares.sub(2 / 3).abs().max() < 0.05


def net_of(model: ModelName, **changes: Any) -> ViViT:
    return randomize(tiny(model, **{"num_classes": {}} | changes))


@pytest.mark.parametrize("changes", [{}, {"pool": "mean"}, {"pool": "mean", "fc_norm": True}])
@pytest.mark.parametrize("model", MODELS)
def test_no_model_sees_masked_pixels_in_any_frame(model: ModelName, changes: dict[str, Any]) -> None:
    net = net_of(model, **changes)
    kept_Bk, masked_Bm = tube_masks([1, 2], 6, 0.5)
    video = videos(net)
    x_BtkD = visible_tokens(net, video, kept_Bk)
    assert x_BtkD.shape == (2, 4, 3, 16)
    whole = tubelets(net, video.transpose(1, 2))
    for places, is_seen in ((masked_Bm, False), (kept_Bk, True)):
        other = whole.scatter(2, at_places(whole, places), 0.5)
        found = visible_tokens(net, whole_clip(net, other).transpose(1, 2), kept_Bk)
        assert torch.equal(found, x_BtkD) != is_seen


@pytest.mark.parametrize("model", MODELS)
def test_all_tokens_are_visible_without_a_mask(model: ModelName) -> None:
    net = net_of(model, pool="mean")
    video, kept_Bk = videos(net), torch.arange(6).expand(2, -1)
    features_BD = visible_tokens(net, video, kept_Bk).mean((1, 2))
    if model == "vivit_fe":  # Its tokens also have those of the spatial encoder.
        features_BD = features_BD - net.encoder.tokens(net.embedding(video)).mean((1, 2))
    torch.testing.assert_close(features_BD, net.features(video), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"pool": "mean", "fc_norm": True}, {"reg_tokens": 2}])
@pytest.mark.parametrize("model", MODELS)
def test_every_weight_of_encoder_and_decoder_learns(model: ModelName, changes: dict[str, Any]) -> None:
    """Otherwise, processes of DDP would wait for gradients that never come."""
    if "reg_tokens" in changes and model not in ("vivit_st", "vivit_fe"):
        return
    net = net_of(model, **changes)
    decoder = Decoder(16, net.grid, 96, decoder_dim=8, depth=2, heads=2)
    kept_Bk, masked_Bm = tube_masks([1, 2], 6, 0.5)
    video = (videos(net) + 1) * 127
    predicted = decoder(visible_tokens(net, video / 255, kept_Bk), kept_Bk, masked_Bm)
    clip_losses(predicted, targets(net, video.transpose(1, 2).byte(), masked_Bm)).mean().backward()
    named = [*net.named_parameters(), *((f"decoder.{name}", x) for name, x in decoder.named_parameters())]
    unused = [name for name, x in named if x.grad is None or not x.grad.any()]
    assert unused == ["head.weight", "head.bias"]  # They are empty.


def test_a_target_has_mean_zero_and_variance_one_whatever_light_and_contrast_are() -> None:
    net = net_of("vivit_st")
    video = torch.randint(256, (2, 8, 3, 8, 12), dtype=torch.uint8)
    _, masked_Bm = tube_masks([1, 2], 6, 0.5)
    target = targets(net, video, masked_Bm).unflatten(3, (3, 32))
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 4, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(2, 4, 3, 3), atol=1e-4, rtol=0)
    darker = targets(net, video // 2 * 2, masked_Bm), targets(net, video // 2, masked_Bm)
    torch.testing.assert_close(*darker, atol=1e-4, rtol=0)
    assert not targets(net, torch.full_like(video, 7), masked_Bm).any()


def test_tubelets_are_cut_and_put_together_again() -> None:
    net = net_of("vivit_fe")
    video = torch.randint(256, (2, 8, 3, 8, 12), dtype=torch.uint8)
    parts = tubelets(net, video)
    assert torch.equal(parts[1, 2, 4, 0].view(2, 4, 4), video[1, 4:6, 0, 4:8, 4:8])  # row 1, column 1
    assert torch.equal(whole_clip(net, parts), video)
    sampled = net_of("vivit_fe", tubelet=(1, 4, 4), sampled_frames=3)
    frames = sampled.embedding.frame_index
    assert torch.equal(whole_clip(sampled, tubelets(sampled, video)), video[:, frames])
    mean, std = scales(parts.float())
    assert mean.shape == std.shape == (2, 4, 6, 3, 1)


class OwnEncoding(type(tiny("vivit_st"))):  # type: ignore[misc]
    def encode(self, x_BtnD: torch.Tensor) -> torch.Tensor:
        return x_BtnD.mean((1, 2))


def test_models_that_a_mask_does_not_fit_are_refused_in_words() -> None:
    assert not problems_of(tiny("vivit_fdp"))
    assert "set model.rope=false" in problems_of(tiny("vivit_st", rope=True))[0]
    assert "smaller model.tubelet" in problems_of(tiny("vivit_st", tubelet=(2, 8, 12)))[0]
    own = OwnEncoding(num_classes=2, frames=8, image_size=(8, 12), dim=16, depth=1, heads=2, tubelet=(2, 4, 4))
    assert "OwnEncoding encodes tokens in its own way" in problems_of(own)[0]


def as_ours(theirs: Any, ours: Decoder) -> None:
    """Copies the decoder of transformers. Our numbers of a tubelet are in the order of a kernel, [C, t, h, w]."""
    state = {name: value.detach() for name, value in theirs.state_dict().items()}
    new = {"embedding.weight": state["encoder_to_decoder.weight"], "mask_token": state["mask_token"][None]}
    for name in ("norm.weight", "norm.bias"):
        new[name] = state[f"decoder.{name}"]
    for name in ("weight", "bias"):
        value = state[f"decoder.head.{name}"]
        new[f"head.{name}"] = value.unflatten(0, (2, 8, 8, 3)).movedim(3, 0).flatten(0, 3)
    for i in range(2):
        at, to = f"decoder.decoder_layers.{i}.", f"blocks.{i}."
        q, v = (state[f"{at}attention.attention.{x}.bias"] for x in ("query", "value"))
        new[f"{to}attention.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        new[f"{to}attention.qkv.weight"] = torch.cat(
            [state[f"{at}attention.attention.{x}.weight"] for x in ("query", "key", "value")]
        )
        for mine, their in {
            "attention.out": "attention.output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }.items():
            new |= {f"{to}{mine}.{kind}": state[f"{at}{their}.{kind}"] for kind in ("weight", "bias")}
    ours.load_state_dict(new)


@pytest.mark.slow
@pytest.mark.parametrize("fc_norm", [False, True])
def test_the_loss_is_that_of_transformers_video_mae(fc_norm: bool, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    narrow = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.VideoMAEConfig(
        **sizes,
        **{f"decoder_{name}": value for name, value in narrow.items()},
        **{"num_frames": 4, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6, "use_mean_pooling": False},
    )
    torch.manual_seed(0)
    theirs = transformers.VideoMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    net = ViViT(
        "vivit_st",
        **{"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "frames": 4, "image_size": 32, "tubelet": (2, 8, 8)},
        **{"num_classes": {}, "pool": "mean", "act": "gelu", "pos_embed": "sincos"},  # type: ignore[arg-type]
    )
    load_pretrained(net, str(tmp_path))
    net.encoder.fc_norm = fc_norm  # Pretraining normalizes each token in either case.
    decoder = Decoder(32, net.grid, 384, decoder_dim=16, depth=2, heads=2)
    as_ours(theirs, decoder)
    video = torch.randint(256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels_BTCHW = (video / 255 - mean) / std
    kept_Bk, masked_Bm = tube_masks([1, 2, 3], 16, 0.75)
    is_masked = torch.zeros(3, 2, 16, dtype=torch.bool).scatter(2, masked_Bm[:, None].expand(-1, 2, -1), True)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels_BTCHW, bool_masked_pos=is_masked.flatten(1)).loss
        predicted = decoder(visible_tokens(net, pixels_BTCHW.transpose(1, 2), kept_Bk), kept_Bk, masked_Bm)
        loss = clip_losses(predicted, targets(net, video, masked_Bm)).mean()
    assert expected > 1
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
