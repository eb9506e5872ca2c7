"""HTML pages that are one file each and need no network: templates, styles, and charts by Plotly."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_text
from vivit_train.utils.text import percent, printable_lines, signed
from vivit_train.utils.version import package_version

MARK = '<meta name="generator" content="vivit-train">'
TEMPLATES = Path(__file__).parents[1] / "templates"


def render(template: str, title: str, **values: Any) -> str:
    """Returns a page. All text is escaped, and characters that change the order of text are made visible.

    Args:
        template: The name of a file in templates/ that extends page.html.
        title: The title of the page.
        values: Further variables of the template.
    """
    date = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return environment().get_template(template).render(title=title, version=package_version(), date=date, **values)


def check_replaceable(file: Path) -> None:
    """Checks that a page may be written to a file, which either does not exist or is a page of this package.

    Raises:
        UserError: The file is something else.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder: set --out to a file")
    if file.exists() and MARK not in read_text(file, errors="replace")[:2000]:
        raise UserError(f"{file} exists and is no page of vivit-train: set --out")


@cache
def environment() -> Environment:
    """Returns the environment of the templates."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    found.filters["percent"] = lambda value: "-" if value is None else percent(value)
    found.filters["two"] = lambda value: "-" if value is None else f"{value:.2f}"
    found.filters["json"] = embedded
    found.filters["signed"] = signed
    found.filters["code"] = with_code
    found.filters["path"] = breakable
    found.globals["include_text"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    found.globals["plotly"] = plotly
    return found


def shown(text: str) -> str:
    """Returns text for the page, in which a percent sign stays with its number."""
    return printable_lines(text).replace(" %", "\u00a0%")


def breakable(text: str) -> Markup:
    """Returns text with paths that break between folders rather than within names."""
    return Markup("/<wbr>").join(escape(part) for part in shown(text).split("/"))


def with_code(text: str) -> Markup:
    """Returns text whose parts between backticks are shown as code."""
    parts = [escape(part) for part in shown(text).split("`")]
    return Markup("").join(Markup(f"<code>{part}</code>") if i % 2 else part for i, part in enumerate(parts))


def embedded(data: Any) -> Markup:
    """Returns plain data as JSON for a script element, in which the browser would read "<" as markup."""
    text = json.dumps(printable_data(data), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def printable_data(data: Any) -> Any:
    """Returns plain data whose texts have no control characters or characters that change the order of text."""
    if isinstance(data, Mapping):
        return {key: printable_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [printable_data(value) for value in data]
    return printable_lines(data) if isinstance(data, str) else data


def data_url(kind: str, content: bytes) -> str:
    """Returns the address of an image that contains it; `kind` is "png" or "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def animation(images: Sequence[Image.Image], frame_ms: int, *, quality: int, method: int) -> str:
    """Returns an animated WebP as a data URL."""
    buffer = io.BytesIO()
    first, *others = images
    timing: dict[str, Any] = {"duration": frame_ms, "loop": 0}
    first.save(buffer, "WEBP", save_all=True, append_images=others, quality=quality, method=method, **timing)
    return data_url("webp", buffer.getvalue())


def plotly() -> Markup:
    """Returns the code of Plotly."""
    return Markup(files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8"))
