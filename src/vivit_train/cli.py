"""`vivit ...`: the tools beside train.py and eval.py. Each is a module, imported when it is called."""

from pathlib import Path
from typing import Annotated

import typer
from omegaconf import DictConfig

from vivit_train.errors import UserError, exit_with_message

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Overrides = Annotated[
    list[str] | None, typer.Argument(help="As for train.py: data=folder data.root=DIR data.frames=16 ...")
]


@app.callback()
def vivit() -> None:
    """Tools for the videos, the speed and the results of vivit-train."""


def compose(overrides: list[str] | None, run_dir: Path) -> DictConfig:
    """The configuration that train.py would have with these overrides."""
    import hydra

    package = Path(__file__).parent
    folder = next((f for f in (package / "conf", package.parents[1] / "conf") if f.is_dir()), None)
    if folder is None:
        raise UserError("the configuration's folder conf/ is neither in the package nor beside src/")
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose("train", [f"run_dir={run_dir}", *(overrides or [])])


def main() -> None:
    exit_with_message(app)


if __name__ == "__main__":
    main()
