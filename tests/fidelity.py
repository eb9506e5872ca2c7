"""Writes docs/fidelity.md: our numbers beside the paper's and the reference code's.

make fidelity
"""

import logging
import warnings
from pathlib import Path

import parity
import torch
from helpers import SHARED

PAGE = Path(__file__).parents[1] / "docs" / "fidelity.md"

# what, the authors' code, here, why
ON_PURPOSE = [
    (
        "image ViT's cls token in `vivit_fe`",
        "the loader leaves it as initialised, and loads its position",
        "loaded",
        "the spatial encoder is then the pretrained ViT (tested on DeiT-Ti)",
    ),
    (
        "temporal attention of `vivit_fsa` at the start",
        '"zero": q, k, v and out are 0, and so are their gradients, for ever',
        "only the out projection is 0",
        "the same output at step 0, and it learns (tested)",
    ),
    (
        "stochastic depth",
        "branches that stay are not rescaled; `vivit_fsa` ignores it",
        "timm's DropPath, rescaled, in all four models",
        "a branch's expectation is what inference computes",
    ),
    (
        "mixup",
        "pairs clip i with clip B-1-i",
        "pairs it with its neighbour (torchvision)",
        "the same in distribution; the training steps above are given the authors' pairs",
    ),
    (
        "random crops in training",
        "the clip is resized, then cropped",
        "the crop's box is resized",
        "the same pixels but near the crop's border, with less work; validation and test resize first",
    ),
    (
        "flips on Something-Something v2",
        "the paper does not say",
        '"left" and "right" change places in the label',
        'a flipped "left to right" is a "right to left"',
    ),
    (
        "videos that cannot be read",
        "are not in their TFRecords",
        "are named; in training another takes their place, in evaluation they are wrong answers",
        "the number of videos is part of a result",
    ),
]


def table(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def costs() -> list[str]:
    lines = table(
        "model", "parameters, paper", "here", "multiply-adds, paper", "here, every token", "difference", "computed"
    )
    for model, size, kwargs, parameters, multiply_adds in parity.PAPER:
        millions, computed, ours = parity.cost(model, size, kwargs)
        name = f"`{model}` {size}{''.join(f', {key} {value}' for key, value in kwargs.items())}"
        lines.append(
            f"| {name} | {parameters:.2f} M | {millions:.2f} M | {multiply_adds:.1f} G | {ours:.1f} G | "
            f"{ours / multiply_adds - 1:+.1%} | {computed:.1f} G |"
        )
    return lines


def outputs() -> list[str]:
    lines = table("golden", "float32, fused attention", "float32, step by step", "float64")
    for case in parity.MODELS:
        errors = [
            parity.forward_error(case, torch.float32),
            parity.forward_error(case, torch.float32, eager=True),
            parity.forward_error(case, torch.float64),
        ]
        lines.append(f"| scenic/{case} | {' | '.join(f'{error:.1e}' for error in errors)} |")
    hugging = [parity.huggingface_error(torch.float32, eager) for eager in (False, True)]
    hugging.append(parity.huggingface_error(torch.float64))
    lines.append(f"| huggingface/a | {' | '.join(f'{error:.1e}' for error in hugging)} |")
    return lines


def training_steps() -> list[str]:
    lines = [
        "| golden | precision | loss | gradient norm | learning rate | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for case in parity.MODELS:
        for precision in ("32-true", "64-true"):
            errors = parity.trainstep_errors(f"trainstep_{case}", precision)
            shown = " | ".join(f"{errors[name]:.1e}" for name in ("loss", "grad_norm", "lr", "parameters"))
            lines.append(f"| scenic/trainstep_{case} | {precision} | {shown} |")
    return lines


def initialisation() -> list[str]:
    lines = table("golden", "model, tubelets", "parameters")
    for case, (model, tubelet) in parity.INITS.items():
        lines.append(f"| scenic/{case} | `{model}`, {tubelet} | {parity.init_error(case):.1e} |")
    return lines


def exchange() -> list[str]:
    lines = table("what", "difference")
    for case, model in parity.MODELS.items():
        lines.append(f"| `{model}`: scenic's tree to ours and back | {parity.scenic_round_trip(case):.1e} |")
    lines.append(f"| `vivit_st`: Hugging Face's folder to ours and back | {parity.huggingface_round_trip():.1e} |")
    if SHARED.is_dir():
        levels = parity.processor_error(SHARED)
        lines.append(f"| resize to 256 and centre crop against Hugging Face's (PIL) | {levels} of 255 |")
        error = parity.deit_error(SHARED)
        lines.append(f"| `vivit_fe`'s spatial cls against DeiT-Ti's features of the central frame | {error:.1e} |")
    else:
        lines.append("| preprocessing, and real DeiT-Ti weights | not measured: no ../shared beside this clone |")
    return lines


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    page = [
        "# Fidelity",
        "",
        "Made by `make fidelity` (tests/fidelity.py); the tests assert the same. Differences are the largest",
        f"absolute ones, on a CPU, torch {torch.__version__.partition('+')[0]}.",
        "",
        "## Size and cost",
        "",
        "One 32x224x224 view, 400 classes but where another number is given. Multiply-adds of matrix products, by",
        "torch's counter; softmax, norms and GELU, which it leaves out, make the difference up. The paper counts",
        "all tokens of the last block; what is computed leaves out the unread ones, all but the cls token.",
        "",
        *costs(),
        "",
        "## Logits",
        "",
        "Tiny random models whose every parameter is perturbed, against the authors' code and Hugging Face's in",
        "float64.",
        "",
        *outputs(),
        "",
        "## Four training steps",
        "",
        "Mixup, label smoothing 0.3, clipping to 1, SGD with momentum 0.9, warm-up and cosine, through our",
        "LightningModule, optimizer and Lightning's Trainer. The authors' steps were computed in float64; ours",
        "are logged in float32.",
        "",
        *training_steps(),
        "",
        "## Initialisation from an image ViT",
        "",
        "Every parameter after loading, against the authors' loader; the two differences on purpose below aside.",
        "",
        *initialisation(),
        "",
        "## Exchange and preprocessing",
        "",
        *exchange(),
        "",
        "## Different on purpose",
        "",
        *table("what", "the authors' code", "here", "why"),
        *(f"| {' | '.join(row)} |" for row in ON_PURPOSE),
    ]
    PAGE.write_text("\n".join(page) + "\n")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
