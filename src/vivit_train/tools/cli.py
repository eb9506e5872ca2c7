"""The command `vivit`: training, evaluation and the tools around them.

The module of a tool is imported only when the tool is called.
"""

import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from vivit_train.tools.crossval import command as crossval_command
from vivit_train.tools.explain import command as explain_command
from vivit_train.tools.export import command as export_command
from vivit_train.tools.features import command as features_command
from vivit_train.tools.predict import command as predict_command
from vivit_train.tools.probe import command as probe_command
from vivit_train.tools.usage import HELP, Videos, check_new, run_app
from vivit_train.utils.errors import UserError
from vivit_train.utils.logs import add_terminal_handler
from vivit_train.utils.startup import prepare_process
from vivit_train.utils.text import file_stem

log = logging.getLogger("vivit_train.tools.cli")  # run as a module, its name would be __main__


def examples(*commands: str) -> str:
    """Return the last paragraphs of a help text. Typer joins lines, but not paragraphs."""
    return "\n\n".join(["Examples:", *commands])


app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP)
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides as for vivit train: data=csv data.root=DIR data.frames=16 ..."),
]
bench = typer.Typer(no_args_is_help=True, help="Measure the speed of data loader and model on this machine.")
app.add_typer(bench, name="bench")


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vivit-train {version('vivit-train')}")
        raise typer.Exit


@app.callback()
def vivit(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and apply ViViT, prepare and check videos, measure speed and replay failed steps."""
    add_terminal_handler()


# Hydra parses the arguments of `vivit train` and `vivit eval`; Typer passes its flags on.
TO_HYDRA = {"ignore_unknown_options": True, "allow_interspersed_args": False}
HydraArguments = Annotated[
    list[str] | None,
    typer.Argument(help="Flags of Hydra, such as -m, --cfg job and --config-dir DIR, before overrides: KEY=VALUE"),
]


def replace_process(module: str, arguments: Sequence[str] | None) -> None:
    """Run a module of the package in place of this process, as only Hydra's own arguments may be in sys.argv."""
    # `python -m` would import modules from the current folder, which may hold files of strangers.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", module, *(arguments or [])])


@app.command(
    "train",
    context_settings=TO_HYDRA,
    epilog=examples(
        "vivit train data=folder data.root=videos init=imagenet hydra.run.dir=runs/mine",
        "vivit train -m model=vivit_st,vivit_fe hydra.sweep.dir=runs/sweep",
        "vivit train --config-dir myconf data=mine",
        "vivit train data=folder data.root=videos --cfg job",
        "PYTHONPATH=. vivit train model._target_=mymodule.MyViT",
    ),
)
def train_model(arguments: HydraArguments = None) -> None:
    """Train a model: a single run, a sweep or a hyperparameter search. This is train.py of the repository.

    With --config-dir DIR, Hydra also finds your own YAML files, such as DIR/data/mine.yaml.

    --hydra-help explains the other flags of Hydra.
    """
    replace_process("vivit_train.tools.train", arguments)


@app.command(
    "eval",
    context_settings=TO_HYDRA,
    epilog=examples(
        "vivit eval ckpt_path=runs/mine/checkpoints/best.ckpt",
        "vivit eval ckpt_path=runs/mine/checkpoints/best.ckpt eval.views=4x3",
        "vivit eval ckpt_path=runs/mine/checkpoints/best.ckpt data=csv data.root=videos data.val=more.csv",
        "vivit eval ckpt_path=google/vivit-b-16x2-kinetics400 data=kinetics400 data.root=DIR eval.views=4x3",
    ),
)
def evaluate_checkpoint(arguments: HydraArguments = None) -> None:
    """Evaluate a checkpoint. This is eval.py of the repository.

    The checkpoint holds the model, the labels and the preprocessing.

    ckpt_path may also name the authors' checkpoint, or a Hugging Face folder or hub name, together with data=NAME.
    """
    replace_process("vivit_train.tools.eval", arguments)


app.command(epilog=examples(*predict_command.EXAMPLES))(predict_command.predict)
app.command(epilog=examples(*explain_command.EXAMPLES))(explain_command.explain)
app.command(epilog=examples(*export_command.EXAMPLES))(export_command.export)
app.command(epilog=examples(*export_command.PUSH_EXAMPLES))(export_command.push)
app.command(epilog=examples(*features_command.EXAMPLES))(features_command.features)
app.command(epilog=examples(*features_command.SEARCH_EXAMPLES))(features_command.search)
app.command(epilog=examples(*probe_command.EXAMPLES))(probe_command.probe)
app.command(epilog=examples(*crossval_command.EXAMPLES))(crossval_command.crossval)


@app.command(
    epilog=examples(
        "vivit prepare videos small",
        "vivit prepare videos small --list doctor/folder/re-encode.txt",
        "vivit prepare videos small --shard 3/8",
    )
)
def prepare(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Source folder, searched recursively.")],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="Output folder: same folder structure, every video as .mp4.")
    ],
    short_side: Annotated[
        int,
        typer.Option(min=2, max=8192, help="Short side in pixels, as data.short_side. Videos are never upscaled."),
    ] = 256,
    gop: Annotated[
        int, typer.Option(min=1, max=10_000, help="GOP size: frames from one key frame to the next.")
    ] = 32,
    crf: Annotated[
        int,
        typer.Option(min=0, max=51, help="x264 quality: 18 is almost lossless to the eye, 28 shows artifacts."),
    ] = 23,
    workers: Annotated[
        int | None, typer.Option(min=1, max=512, help="Number of processes. Default: one per core.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Process only part I of N, from 0/N to N-1/N, as in a job array."),
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="Process only the videos that this file lists.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Time limit per video in seconds, plus 10 s per MB.")
    ] = 3600,
) -> None:
    """Re-encode videos for fast training: downscaled, upright, without audio, with short closed GOPs.

    The frames and their timestamps stay the same. Videos that are already done are skipped.

    DST/manifest.csv lists the videos with their checksums. DST/failed.csv lists unreadable videos.
    """
    from vivit_train.tools.encode import Settings
    from vivit_train.tools.prepare import prepare as make

    settings = Settings(short_side, gop, crf)
    make(source, target, settings, workers=workers, shard=shard, listed=listed, timeout_s=timeout)


@app.command(
    epilog=examples(
        "vivit doctor videos",
        "vivit doctor data=csv data.root=videos data.train=train.csv data.val=val.csv --every-frame",
        "vivit doctor data=kinetics400 data.root=k400 --workers 16 --out doctor/k400",
    )
)
def doctor(
    videos: Videos = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report. Default: doctor/<data name>.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=512, help="Number of processes that read files. 0 means one per core.")
    ] = 0,
    every_frame: Annotated[
        bool, typer.Option("--every-frame", help="Decode every frame of every file: slower but thorough.")
    ] = False,
) -> None:
    """Check every video of a dataset before training and report what is wrong with it."""
    from vivit_train.tools.doctor.run import examine
    from vivit_train.tools.overrides import compose_data, to_overrides
    from vivit_train.utils.process_pool import usable_cores

    cfg = compose_data(videos, Path("runs/doctor"), "vivit doctor")
    folder = out or Path("doctor") / file_stem(str(cfg.data.name))
    examine(cfg, folder, workers or usable_cores(), every_frame=every_frame, overrides=to_overrides(videos))


@app.command(
    epilog=examples(
        "vivit compare runs/a runs/b",
        "vivit compare runs/a runs/b runs/c --out three.html",
    )
)
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs or evaluations on the same videos with the same views.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
) -> None:
    """Compare results on the same videos: the difference with its interval, McNemar's test, and what flipped."""
    from vivit_train.tools.compare import compare as compare_results

    compare_results(folders, out)


@app.command(
    epilog=examples(
        "vivit replay runs/mine/nonfinite/step_12.pt",
        "vivit replay runs/mine/nonfinite/step_12.pt --trusted mypackage",
    )
)
def replay(
    file: Annotated[Path, typer.Argument(help="A step that a run saved: <run folder>/nonfinite/*.pt")],
    out: Annotated[
        Path | None, typer.Option(help="Contact sheet of the clips. Default: next to FILE, as .png.")
    ] = None,
    trusted: Annotated[
        list[str] | None, typer.Option(help="Your own package that defines the model. May be repeated.")
    ] = None,
) -> None:
    """Repeat a step whose loss or gradient was not finite and report where the first NaN or inf appears."""
    from vivit_train.tools.replay import replay as repeat

    check_new("--out", out)
    repeat(file, out or file.with_suffix(".png"), trusted or ())


@bench.command(
    epilog=examples(
        "vivit bench loader videos",
        "vivit bench loader videos data.frames=16 data.crop=112 --workers 1,2,4",
    )
)
def loader(
    videos: Videos = None,
    clips: Annotated[int, typer.Option(min=1, help="Number of videos in the random sample.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Number of measurements. Their medians are reported.")] = 3,
    workers: Annotated[
        str, typer.Option(help="Numbers of workers to try, such as 1,2,4. Default: up to the number of cores.")
    ] = "",
    target: Annotated[
        float | None,
        typer.Option(min=0.1, help="Clips/s that the advice aims at. Default: what the model consumes here."),
    ] = None,
    gop: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="GOP size in frames of the files that `vivit prepare` would write."),
    ] = 32,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write results to this new JSON file.")
    ] = None,
) -> None:
    """Measure the throughput of the data loader and the time of its stages, and advise how to speed it up.

    The results include clips/s by number of workers and the speed of libavcodec alone.
    """
    from tempfile import TemporaryDirectory

    from vivit_train.tools.bench.loader import bench_loader, save, table
    from vivit_train.tools.overrides import compose_data

    if not re.fullmatch(r"(\d+(,\d+)*)?", workers):
        raise UserError(f"--workers {workers}: expected comma-separated numbers, such as 1,2,4")
    check_new("--json", json)
    numbers = [int(number) for number in workers.split(",") if number]
    if max(numbers, default=0) > 512:
        raise UserError(f"--workers {workers}: must be numbers up to 512")
    with TemporaryDirectory() as folder:
        cfg = compose_data(videos, Path(folder), "vivit bench loader")
        result = bench_loader(cfg, clips=clips, rounds=rounds, workers=numbers, target_clips_per_s=target, gop=gop)
    log.info(table(result))
    if json:
        save(result, json)


Batches = Annotated[str, typer.Option("--batch", help="Batch sizes in clips, such as 1,2,4,8.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto: cuda if available, otherwise cpu.")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed steps of each. Medians are reported.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write results to this new JSON file.")
]


@bench.command(
    epilog=examples(
        "vivit bench model model=vivit_st model.size=B --batch 1,8",
        "vivit bench model --mode infer --dtype bf16 --variants eager,sdpa,compiled",
    )
)
def model(
    overrides: Overrides = None,
    batch: Batches = "1,2,4,8",
    mode: Annotated[str, typer.Option(help="train, infer, or both: train,infer.")] = "train,infer",
    dtype: Annotated[str, typer.Option(help="float32, bf16 or fp16, or a comma-separated list.")] = "float32",
    variants: Annotated[
        str, typer.Option(help="Any of eager, sdpa and compiled. The first one is the baseline.")
    ] = "eager,sdpa",
    device: Device = "auto",
    rounds: Rounds = 5,
    json: JsonFile = None,
) -> None:
    """Measure a model's clips/s, peak memory and MFU, with eager, fused or compiled attention."""
    from vivit_train.build import resolve_clip
    from vivit_train.tools.bench import model
    from vivit_train.tools.overrides import OF_TRAINING, compose_words

    check_new("--json", json)
    cells = model.cells(
        resolve_clip(compose_words(overrides, Path("runs/bench"), OF_TRAINING))[0].model,
        batches=model.numbers("--batch", batch),
        modes=model.choices("--mode", mode, model.MODES),
        dtypes=model.choices("--dtype", dtype, tuple(model.DTYPES)),
        variants=model.choices("--variants", variants, model.VARIANTS),
        device=model.usable(device),
        rounds=rounds,
    )
    rows = []
    for row in model.bench(cells):
        rows.append(row)
        if json:
            model.save(rows, json)
    log.info("\n".join([model.about(rows), "", model.table(rows), "", model.limits(rows)]))


@bench.command(
    epilog=examples(
        "vivit bench train model=vivit_fe model.size=B data=kinetics400",
        "vivit bench train model.size=Ti data=folder data.frames=16 --steps 20 --json steps.json",
    )
)
def train(
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=2, help="Number of timed optimizer steps.")] = 10,
    json: JsonFile = None,
) -> None:
    """Measure whole training steps on clips in memory: the throughput if the model never waits for data."""
    from tempfile import TemporaryDirectory

    from vivit_train.build import resolve_clip
    from vivit_train.tools.bench.train import bench_train, save, table
    from vivit_train.tools.overrides import compose_words

    check_new("--json", json)
    with TemporaryDirectory() as folder:
        result = bench_train(resolve_clip(compose_words(overrides, Path(folder)))[0], steps=steps)
    log.info(table(result, overrides or []))
    if json:
        save(result, json)


def main() -> None:
    prepare_process()
    run_app(app)


if __name__ == "__main__":
    main()
