"""What we export is what transformers itself loads, computes and serves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import randomize, tiny, videos

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.huggingface import save_huggingface
from vivit_train.models.weights.load import load_pretrained

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VERSION = int(transformers.__version__.partition(".")[0])
HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = ["hop", "skip", "jump", "run", "rest"]


@pytest.mark.parametrize("image_size", [(16, 16), (8, 12)])
def test_logits_and_labels_are_ours(image_size: tuple[int, int], tmp_path: Path) -> None:
    if image_size[0] != image_size[1] and VERSION < 5:
        pytest.skip("version 4 takes square inputs alone")
    net = randomize(tiny("vivit_st", image_size=image_size))
    save_huggingface(net, tmp_path, classes=CLASSES, mean=HALF, std=HALF, short_side=18)
    theirs, report = transformers.AutoModelForVideoClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report  # nothing missing, unexpected or of another shape
    video_BCTHW = videos(net)
    with torch.no_grad():
        logits = theirs.eval()(pixel_values=video_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(logits, net(video_BCTHW), atol=1e-5, rtol=0)
    assert list(theirs.config.id2label.values()) == CLASSES


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), IMAGENET])
@pytest.mark.parametrize("processor", ["AutoImageProcessor", "AutoVideoProcessor"])
def test_pixels_are_served_in_the_range_of_the_training(
    processor: str, mean: Any, std: Any, tmp_path: Path
) -> None:
    if "Video" in processor and VERSION < 5:
        pytest.skip("version 4 has no processor of videos for ViViT")
    net = tiny("vivit_st", image_size=16)
    save_huggingface(net, tmp_path, classes=CLASSES, mean=mean, std=std, short_side=16)
    serve = getattr(transformers, processor).from_pretrained(tmp_path)
    video = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    video[0, 0, :2] = [[0] * 3, [255] * 3]
    pixels = serve(list(video) if "Image" in processor else video, return_tensors="pt")["pixel_values"]
    expected = (torch.from_numpy(video) / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(pixels[0].permute(0, 2, 3, 1), expected, atol=1e-5, rtol=0)
    if mean == HALF:
        assert (pixels.min(), pixels.max()) == (-1, 1)


def test_an_image_vit_of_theirs_gives_its_features(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    vit = transformers.ViTForImageClassification(config).eval()
    vit.save_pretrained(tmp_path)
    net: ViViT = tiny("vivit_fe", image_size=16)
    report = load_pretrained(net, str(tmp_path))
    assert report.coverage == 1
    video_BCTHW = videos(net)
    with torch.no_grad():
        cls_BtD = net.encoder(net.embedding(video_BCTHW))
        features = vit.vit(pixel_values=video_BCTHW[:, :, 3]).last_hidden_state[:, 0]
    torch.testing.assert_close(cls_BtD[:, 1], features, atol=1e-5, rtol=0)
