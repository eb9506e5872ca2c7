"""HTML pages that are one file each and need no network: templates, styles, and charts by Plotly."""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vivit_train.utils.text import printable_lines
from vivit_train.utils.version import package_version

TEMPLATES = Path(__file__).parents[1] / "templates"


def render(template: str, title: str, data: Mapping[str, Any], **values: Any) -> str:
    """Returns a page. All text is escaped, and characters that change the order of text are made visible.

    Args:
        template: The name of a file in templates/ that extends page.html.
        title: The title of the page.
        data: Plain data for the charts; each chart of the template names its part.
        values: Further variables of the template.
    """
    page = environment().get_template(template)
    # The browser reads "<" in a script element as markup.
    embedded = json.dumps(printable_data(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return page.render(
        title=title,
        data=Markup(embedded),
        data_parts=data,
        plotly=Markup(files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")),
        version=package_version(),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        **values,
    )


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
    found.filters["percent"] = lambda value: "-" if value is None else f"{100 * value:.0f} %"
    found.filters["two"] = lambda value: "-" if value is None else f"{value:.2f}"
    found.globals["include_text"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return found


def shown(text: str) -> str:
    """Returns text for the page, in which a percent sign stays with its number."""
    return printable_lines(text).replace(" %", "\u00a0%")


def printable_data(data: Any) -> Any:
    """Returns plain data whose texts have no control characters or characters that change the order of text."""
    if isinstance(data, Mapping):
        return {key: printable_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [printable_data(value) for value in data]
    return printable_lines(data) if isinstance(data, str) else data
