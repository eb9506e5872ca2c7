"""Writes docs/fidelity.md: our numbers beside the paper's and the reference code's.

make fidelity
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import parity
import parity_pixels
import parity_recipes
import parity_training
import torch
import toy_training
from helpers import SHARED

PAGE = Path(__file__).parents[1] / "docs" / "fidelity.md"

# what, the authors' code, here, why
ON_PURPOSE = [
    (
        "the image ViT's cls token in `vivit_fe`",
        "the loader leaves it as initialized but loads its position embedding",
        "loaded",
        "the spatial encoder then equals the pretrained ViT (tested on DeiT-Ti)",
    ),
    (
        "initial temporal attention of `vivit_fsa`",
        '"zero": q, k, v and out are 0, and their gradients stay 0',
        "only the output projection is 0",
        "the output at step 0 is the same, and the layer can learn (tested)",
    ),
    (
        "stochastic depth",
        "surviving branches are not rescaled; `vivit_fsa` ignores it",
        "timm's DropPath, which rescales, in all four models",
        "the expected value of a branch equals its value at inference",
    ),
    (
        "mixup",
        "pairs clip i with clip B-1-i",
        "pairs it with its neighbor (torchvision)",
        "the distribution is the same; the training steps above use the authors' pairs",
    ),
    (
        "random crops in training",
        "the clip is resized, then cropped",
        "only the crop's box is resized",
        "the same pixels but for the border and a shift by part of a pixel (measured above), with less work; "
        "validation and test resize first",
    ),
    (
        "color jitter",
        "in float32, which the model sees",
        "in float32, rounded to uint8 at the end",
        "at most half a level; batches stay uint8",
    ),
    (
        "resize",
        "bilinear without antialiasing, fractions cut off",
        "`data.resize=fast`: bicubic while decoding, then bilinear, both with antialiasing; "
        "`data.resize=authors` is theirs and the choice of the recipes `authors_*`",
        "on a CPU, training clips of 340x256 take less time (measured above)",
    ),
    (
        "flips on Something-Something v2",
        "the paper does not say",
        '"left" and "right" are swapped in the label; `recipe=authors_something_something_v2` keeps it',
        'a flipped "left to right" is a "right to left"; elsewhere the swap has gained half a point',
    ),
    (
        "videos that cannot be read",
        "absent from their TFRecords",
        "named; replaced in training; wrong answers in evaluation",
        "the number of videos is part of the result",
    ),
    (
        "the head of EPIC-Kitchens",
        "one output of 397 classes: the nouns, then the verbs",
        "two heads: verb, noun",
        "their files are reordered both ways (tested on rows that carry their class)",
    ),
    (
        "Hugging Face's normalization",
        "pixels in [-1, 1]; the default of Hugging Face's processor is [-3, 1]",
        "[-1, 1], also for a folder that states the default",
        "the released weights were trained so; a note tells how to set `init.mean` and `init.std` for a model "
        "that was fine-tuned in [-3, 1]",
    ),
    (
        "`recipe=modern_kinetics`",
        "TAdaConv scales height and width by one factor, and one ramp of stochastic depth covers both encoders",
        "two factors; a ramp for each encoder",
        "as in the other recipes; the effect is not measured, so the page claims no accuracy",
    ),
    (
        "`recipe=modern_epic_kitchens100`",
        "TAdaConv: likewise; no gray clips, colors in a fixed order, random erasing with noise",
        "likewise; 30% of the clips gray, a random order, black",
        "as above",
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


def long_training() -> list[str]:
    lines = table("model", "precision", "largest difference of the loss", "mean", "JAX in bf16: largest", "mean")
    golden = parity_training.golden()
    for model in toy_training.MODELS:
        noise = np.abs(golden[f"{model}/bf16"] - golden[model])
        for precision in ("64-true", "32-true", "bf16-mixed"):
            error = np.abs(parity_training.in_new_folder(model, precision) - golden[model])
            theirs = f"{noise.max():.1e} | {noise.mean():.1e}" if precision == "bf16-mixed" else "|"
            lines.append(f"| `{model}` | {precision} | {error.max():.1e} | {error.mean():.1e} | {theirs} |")
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
        lines.append(f"| resize to 256 and center crop against Hugging Face's (PIL) | {levels} of 255 |")
        error = parity.deit_error(SHARED)
        lines.append(f"| `vivit_fe`'s spatial cls against DeiT-Ti's features of the central frame | {error:.1e} |")
    else:
        lines.append("| preprocessing, and real DeiT-Ti weights | not measured: no ../shared beside this clone |")
    return lines


def clips() -> list[str]:
    lines = table("what", "the authors' rule", "different here")
    wrong, total = parity_recipes.training_starts()
    lines.append(f"| first and last start of a training clip | 0 and L - (n - 1)s - 1 | {wrong} of {total} |")
    wrong, total = parity_recipes.middle_crops()
    lines.append(f"| middle of three crops | ceil((side - crop) / 2) | {wrong} of {total} |")
    wrong, total = parity_recipes.test_frames()
    lines.append(
        f"| frame numbers of four test clips | int(linspace(0, max(0, L - n s), 4)) | {wrong} of {total} |"
    )
    wrong, total = parity_recipes.table_7()
    lines.append(f"| values in the five recipes of the paper | Table 7 | {wrong} of {total} |")
    return lines


def pixels() -> list[str]:
    lines = table("video", "against", "fast: mean", "largest", "authors: mean", "largest")
    for path in parity_pixels.videos():
        width, height = parity_pixels.size(path)
        found = [parity_pixels.errors(path, resize) for resize in parity_pixels.RESIZES]
        for what, names in (
            ("the authors' center crop and three crops", ("center", "first", "middle", "last")),
            ("the authors' scale jitter and crop", ("train",)),
            ("Hugging Face's processor", ("huggingface",)),
        ):
            shown = " | ".join(
                f"{np.mean([error[name][0] for name in names]):.2f} | {max(error[name][1] for name in names)}"
                for error in found
            )
            lines.append(f"| {path.name}, {width}x{height} | {what} | {shown} |")
    return lines


def pixel_costs() -> list[str]:
    lines = table("video", "test clip: time, authors / fast", "training clip")
    for path in parity_pixels.videos():
        width, height = parity_pixels.size(path)
        test, training = parity_pixels.cost(path)
        lines.append(f"| {path.name}, {width}x{height} | {test:.2f} | {training:.2f} |")
    return lines


def pixel_accuracies() -> list[str]:
    if not SHARED.is_dir():
        return ["Their effect on accuracy was not measured: no ../shared beside this clone."]
    lines = table("linear classifier trained on", "top-1 on fast", "top-1 on authors")
    found = parity_pixels.accuracies(SHARED)
    for trained in parity_pixels.RESIZES:
        shown = " | ".join(f"{found[trained, tested]:.3f}" for tested in parity_pixels.RESIZES)
        lines.append(f"| {trained} | {shown} |")
    return lines


def recipes_on_purpose() -> list[tuple[str, str, str, str]]:
    """The rows of the table of intentional differences that are measured here."""
    fast, accurate = parity_recipes.rgb_levels()
    norm, cosine = parity_recipes.clipping_order()
    span_s = parity_recipes.span_s
    return [
        (
            "gradient clipping",
            "clips each device's gradient, then takes the mean",
            "takes the mean, then clips",
            "the step does not depend on the number of devices; at one clip per device and gradients larger than "
            f"1, theirs has {norm:.2f} of the length of ours, and their cosine is {cosine:.3f}",
        ),
        (
            "a training clip longer than its video",
            "starts anywhere and repeats the video",
            "starts at the first frame",
            "the frames keep their order until the video ends; test clips are the same",
        ),
        (
            "warmup on Kinetics-600",
            "14,187.5 steps",
            "14,187 steps, a whole number as in their other configurations",
            f"the learning rate differs by at most {parity_recipes.half_step_of_warmup():.1e} of its peak",
        ),
        (
            "stride on Kinetics",
            "2 source frames of videos stored at 25 fps",
            "`data.fps: 12.5`",
            f"a clip spans {span_s(2, 25):.2f} s in videos of 30 fps, too, where stride 2 spans "
            f"{span_s(2, 30):.2f} s",
        ),
        (
            "stride on Something-Something v2",
            "2 in the paper, 1 in their configuration",
            "1",
            f"at 12 fps, a clip of stride 2 spans {span_s(2, 12):.2f} s and a video 4 s, so that four views are "
            "the same clip, which jumps back to the start",
        ),
        (
            "stride on EPIC-Kitchens",
            "2 in the paper, 1 in their configuration",
            "2; `recipe=authors_epic_kitchens100` has 1",
            f"a clip spans {span_s(2, 60000 / 1001):.2f} s at 59.94 fps and {span_s(2, 50):.2f} s at 50 fps",
        ),
        (
            "RGB of frames read at their native size",
            "JPEG frames; how they were made is not stated",
            "swscale's fast conversion",
            f"{fast:+.2f} of 255 levels from exact BT.601; accurate rounding gives {accurate:+.2f}, but reading a "
            f"clip of 340x256 takes {parity_recipes.accurate_rgb_cost():.2f} times as long",
        ),
        (
            "precision on a GPU",
            "float32",
            "bf16-mixed; recipe_differences.txt says so",
            "steps are faster; `trainer.precision=32-true` is the authors'",
        ),
        (
            "ImageNet-21k weights",
            "those of the ViT paper, or others of ImageNet-21k (a path in their configuration)",
            "timm's augreg_in21k; `init=imagenet_orig` takes the ViT paper's",
            "timm lists a higher accuracy on ImageNet-1k for it; on videos not measured",
        ),
    ]


def colors() -> list[str]:
    lines = table("operation / magnitude", "largest difference, of 255", "values that differ")
    for name, (worst, share) in parity.color_errors().items():
        lines.append(f"| {name} | {worst:.2g} | {share:.2%} |")
    return lines


def resizes() -> list[str]:
    lines = table("resize of 36x48 to", "fast: largest difference, of 255", "mean", "authors: largest", "mean")
    fast, authors = (parity.resize_errors(resize) for resize in parity_pixels.RESIZES)
    for size in fast:
        shown = " | ".join(f"{worst:.0f} | {mean:.2f}" for worst, mean in (fast[size], authors[size]))
        lines.append(f"| {size} | {shown} |")
    return lines


def main() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "vivit_train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    page = [
        "# Fidelity",
        "",
        "`make fidelity` writes this page (benchmarks/fidelity.py). Tests check the same numbers. Differences are",
        f"the largest absolute ones, on a CPU with torch {torch.__version__.partition('+')[0]}.",
        "",
        "## Size and cost",
        "",
        "The input is one 32x224x224 view with 400 classes, unless another number is given. Multiply-adds are",
        "those of matrix products, as counted by torch. The counter omits softmax, norms and GELU, which account",
        "for the difference. The paper counts all tokens of the last block. The last column omits unused tokens,",
        "which are all but the cls token.",
        "",
        *costs(),
        "",
        "## Logits",
        "",
        "Tiny random models, with every parameter perturbed, are compared with the authors' code and Hugging",
        "Face's in float64.",
        "",
        *outputs(),
        "",
        "## Four training steps",
        "",
        "The steps use mixup, label smoothing 0.3, gradient clipping to 1, SGD with momentum 0.9, and a cosine",
        "schedule with warmup. They run through our LightningModule, our optimizer and Lightning's Trainer. The",
        "authors' steps were computed in float64. Ours are logged in float32.",
        "",
        *training_steps(),
        "",
        "## 200 training steps of train.py",
        "",
        "`train(cfg)` trains a toy model on toy clips for 20 epochs of 10 steps: mixup, label smoothing 0.3,",
        "gradient clipping to 1, SGD with momentum 0.9, and a cosine schedule with warmup. JAX has simulated",
        "the authors' loop on the same clips in float64 (tests/goldens/training/make.py, which first repeats",
        "the authors' own four steps to 1e-7). Two things differ in 64-true: torch clips to norm / (norm +",
        "1e-6), and mixed targets are float32. Each alone makes differences of the size below. The noise of",
        "bf16 is what JAX's own loop in bf16 differs from its float64 losses.",
        "",
        *long_training(),
        "",
        "## Initialization from an image ViT",
        "",
        "Every parameter after loading is compared with the result of the authors' loader, except for the first",
        "two intentional differences below.",
        "",
        *initialisation(),
        "",
        "## Exchange and preprocessing",
        "",
        *exchange(),
        "",
        "## Clips and recipes",
        "",
        "Clips have 32 frames, at strides of 1, 2 and 4, in videos of up to 399 frames. Strides are not among",
        "the values of Table 7 here; they are below, in the intentional differences.",
        "",
        *clips(),
        "",
        "## Colors and resize against TensorFlow",
        "",
        "Two frames of a real video go through the authors' RandAugment operations and color jitter, computed by",
        "TensorFlow 2.21's own ops (tests/goldens/tensorflow/make.py). Their sharpness cuts off the fractions of",
        "float32 sums, of which some lie just below a whole number. Jitter and gray differ by our rounding to",
        "uint8. Cutout has no row, because its square is drawn.",
        "",
        *colors(),
        "",
        "Their resize is bilinear without antialiasing and cuts off fractions (`data.resize=authors`); `fast` is",
        "antialiased and rounds.",
        "",
        *resizes(),
        "",
        "## From a file to the model",
        "",
        "Two full-size frames of each video become the model's input: short side 256, crop 224. TensorFlow",
        "took the authors' steps, and Hugging Face's processor (transformers 4, PIL) its own",
        "(tests/goldens/preprocessing/make.py). Differences are of 255. The first video is made and has sharp",
        "edges and saturated colors. The crop in training is drawn at the same place, but in whole pixels of",
        "the frame.",
        "",
        *pixels(),
        "",
        "The time is that of reading a clip of 32 frames at stride 2, and in training of resizing its crop,",
        "too, on one CPU core: the median over rounds in alternation. A GPU resizes the crops itself.",
        "",
        *pixel_costs(),
        "",
        "A ridge regression learns the classes of UT-Interaction from DeiT-Ti's features of four frames of",
        "each clip. Of the 37 test clips, one is 0.027.",
        "",
        *pixel_accuracies(),
        "",
        "## Intentional differences",
        "",
        *table("what", "the authors' code", "here", "why"),
        *(f"| {' | '.join(row)} |" for row in [*ON_PURPOSE, *recipes_on_purpose()]),
    ]
    PAGE.write_text("\n".join(page) + "\n")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
