"""`vivit ...`: the tools beside train.py and eval.py. Each is a module, imported when it is called."""

import logging
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import DictConfig

from vivit_train.utils.errors import UserError, exit_with_message
from vivit_train.utils.text import file_stem
from vivit_train.utils.utf8 import in_utf_8

log = logging.getLogger(__name__)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Overrides = Annotated[
    list[str] | None, typer.Argument(help="As for train.py: data=folder data.root=DIR data.frames=16 ...")
]
bench = typer.Typer(no_args_is_help=True, help="How fast it is, on this machine and these files.")
app.add_typer(bench, name="bench")


@app.callback()
def vivit() -> None:
    """Tools for the videos, the speed and the results of vivit-train."""


def compose(overrides: list[str] | None, run_dir: Path) -> DictConfig:
    """The configuration that train.py would have with these overrides."""
    import hydra

    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "conf", package.parents[1] / "conf") if f.is_dir()), None)
    if folder is None:
        raise UserError("the configuration's folder conf/ is neither in the package nor beside src/")
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose("train", [f"run_dir={run_dir}", *(overrides or [])])


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the videos, with all below it.")],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="Made like it: every video under its name, as .mp4.")
    ],
    short_side: Annotated[
        int, typer.Option(help="Pixels: data.short_side of the recipe. Nothing is enlarged.")
    ] = 256,
    gop: Annotated[int, typer.Option(help="Frames from one key frame to the next.")] = 32,
    crf: Annotated[int, typer.Option(help="Quality of x264: 18 is hard to tell from the source, 28 shows.")] = 23,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else one for each core.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="One of N parts, 0/N to N-1/N; job arrays.")
    ] = None,
    listed: Annotated[Path | None, typer.Option("--list", help="Only the videos that this file lists.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a file may take, besides 10 per MB.")] = 3600,
) -> None:
    """Encode videos anew for fast training: small, short closed GOPs, upright, without sound; the same frames.

    What is done is not done again. DST/manifest.csv holds checksums, DST/failed.csv what could not be read.
    """
    from vivit_train.tools.encode import Settings
    from vivit_train.tools.prepare import prepare as make

    settings = Settings(short_side, gop, crf)
    make(source, target, settings, workers=workers, shard=shard, listed=listed, timeout_s=timeout)


@app.command()
def doctor(
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Where the report goes; default doctor/<data name>.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read files; default one per processor.")] = 0,
    every_frame: Annotated[
        bool, typer.Option("--every-frame", help="Decode whole files: slow, and sure.")
    ] = False,
) -> None:
    """Looks at every video of a data set before training does, and says what is wrong with it."""
    from vivit_train.tools.doctor.run import examine
    from vivit_train.utils.process_pool import usable_cores

    cfg = compose(overrides, Path("runs/doctor"))
    folder = out or Path("doctor") / file_stem(str(cfg.data.name))
    examine(cfg, folder, workers or usable_cores(), every_frame=every_frame, overrides=overrides or ())


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A step that a run saved: <run folder>/nonfinite/*.pt")],
    out: Annotated[Path | None, typer.Option(help="The clips as a picture; default beside FILE.")] = None,
    trusted: Annotated[list[str] | None, typer.Option(help="Your own package that defines the model.")] = None,
) -> None:
    """Repeats a step whose loss or gradient was not finite, and says where that began."""
    from vivit_train.tools.replay import replay as repeat

    repeat(file, out or file.with_suffix(".png"), trusted or ())


@bench.command()
def loader(
    overrides: Overrides = None,
    clips: Annotated[int, typer.Option(min=1, help="Videos in the random sample.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all is measured; the medians count.")] = 3,
    workers: Annotated[str, typer.Option(help="Numbers of processes, as 1,2,4; else up to the cores.")] = "",
    gpu: Annotated[float, typer.Option(min=0.1, help="Clips/s that the GPU eats, for the advice.")] = 120,
    gop: Annotated[int, typer.Option(min=1, help="Of the files that `vivit prepare` would make.")] = 32,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the numbers go too.")] = None,
) -> None:
    """Clips/s by number of workers, milliseconds by stage, libavcodec's own limit, and what would help."""
    from tempfile import TemporaryDirectory

    from vivit_train.tools.bench.loader import bench_loader, save, table

    if not re.fullmatch(r"(\d+(,\d+)*)?", workers):
        raise UserError(f"--workers {workers}: expected numbers, such as 1,2,4")
    numbers = [int(number) for number in workers.split(",") if number]
    with TemporaryDirectory() as folder:
        cfg = compose(overrides, Path(folder))
        result = bench_loader(cfg, clips=clips, rounds=rounds, workers=numbers, gpu_clips_per_s=gpu, gop=gop)
    log.info(table(result))
    if json:
        save(result, json)


Batches = Annotated[str, typer.Option("--batch", help="Numbers of clips, as 1,2,4,8.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed steps of each; the medians count.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where the numbers go too.")]


@bench.command()
def model(
    overrides: Overrides = None,
    batch: Batches = "1,2,4,8",
    mode: Annotated[str, typer.Option(help="train, infer")] = "train,infer",
    dtype: Annotated[str, typer.Option(help="float32, bf16, fp16")] = "float32",
    variants: Annotated[
        str, typer.Option(help="eager, sdpa, compiled: all relative to the first.")
    ] = "eager,sdpa",
    device: Device = "auto",
    rounds: Rounds = 5,
    json: JsonFile = None,
) -> None:
    """A model's clips/s, peak memory and MFU: attention step by step, fused, and compiled; what limits it."""
    from vivit_train.tools.bench import model

    cells = model.cells(
        compose(overrides, Path("runs/bench")).model,
        batches=numbers("--batch", batch),
        modes=choices("--mode", mode, model.MODES),
        dtypes=choices("--dtype", dtype, tuple(model.DTYPES)),
        variants=choices("--variants", variants, model.VARIANTS),
        device=model.usable(device),
        rounds=rounds,
    )
    rows = []
    for row in model.bench(cells):
        rows.append(row)
        if json:
            model.save(rows, json)
    log.info("\n".join([model.about(rows), "", model.table(rows), "", model.limits(rows)]))


@bench.command()
def growth(
    overrides: Overrides = None,
    picture: Annotated[Path, typer.Option(metavar="FILE", help="A PNG.")] = Path("growth.png"),
    frames: Annotated[str, typer.Option(help="Numbers of frames.")] = "8,16,32,64,128",
    crops: Annotated[str, typer.Option(help="Sides of the crop in pixels.")] = "112,160,224,320",
    mode: Annotated[str, typer.Option(help="train or infer")] = "train",
    dtype: Annotated[str, typer.Option(help="float32, bf16 or fp16")] = "float32",
    device: Device = "auto",
    rounds: Rounds = 3,
) -> None:
    """How the four models' time and memory grow with frames and resolution, drawn beside what is expected."""
    from omegaconf import OmegaConf

    from vivit_train.models.vivit import MODELS
    from vivit_train.tools.bench import growth, model
    from vivit_train.utils.plots import growth_curves

    nodes: dict[str, Any] = {}
    for name in MODELS:
        cfg = compose([*(overrides or []), f"model={name}"], Path("runs/bench"))
        nodes[name] = OmegaConf.to_container(cfg.model, resolve=True)
    for option, value, known in (("--mode", mode, model.MODES), ("--dtype", dtype, (*model.DTYPES,))):
        if value not in known:
            raise UserError(f"{option} {value}: one of {', '.join(known)}")
    points = []
    for point in growth.growth(
        nodes,
        numbers("--frames", frames),
        numbers("--crops", crops),
        mode=mode,
        dtype=dtype,
        device=model.usable(device),
        rounds=rounds,
    ):
        points.append(point)
        growth_curves(picture, growth.curves(points), growth.ORDERS, growth.title(points))
    log.info("\n".join([growth.title(points), "", growth.table(points), "", f"picture: {picture}"]))


@bench.command()
def train(
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps that are timed.")] = 10,
    json: JsonFile = None,
) -> None:
    """Whole training steps on clips that are there already: what the model could do if it never waited for one."""
    from tempfile import TemporaryDirectory

    from vivit_train.tools.bench.train import bench_train, save, table

    with TemporaryDirectory() as folder:
        result = bench_train(compose(overrides, Path(folder)), steps=steps)
    log.info(table(result, overrides or []))
    if json:
        save(result, json)


def numbers(option: str, text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise UserError(f"{option} {text}: expected numbers, such as 1,2,4")
    return [int(number) for number in text.split(",")]


def choices(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"{option} {text}: '{unknown[0]}' is none of {', '.join(known)}")
    return chosen


def main() -> None:
    in_utf_8()
    exit_with_message(app)


if __name__ == "__main__":
    main()
