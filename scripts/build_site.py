"""Builds the documentation site from docs/ and the pages beside it: python scripts/build_site.py [FOLDER]."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import vivit_train

ROOT = Path(__file__).resolve().parents[1]
# files of the repository that are pages of the site, by their names there
PAGES = {
    "data/README.md": "data-layouts.md",
    "examples/quickstart.ipynb": "quickstart.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
# the names of `vivit_train`, by what they are for
API = {
    "Trained models": ["load", "VideoModel", "Prediction", "Label"],
    "Training and evaluation": ["train", "evaluate", "TrainResult", "EvaluationResult", "compose"],
    "Models and weights": ["create_model", "ViViT", "load_pretrained"],
    "Inside a run": ["load_model", "VideoClassifier", "VideoDataModule"],
}
# what a user calls of the classes that have more methods for other modules of the package
MEMBERS = {
    "VideoModel": ["predict", "embed", "preprocess", "logits"],
    "ViViT": ["from_size", "features", "encode", "block"],
    "VideoClassifier": ["forward"],
    "VideoDataModule": ["train_dataloader", "val_dataloader", "test_dataloader"],
}


def site_link(page: str, text: str, target: str) -> str:
    """Returns a link of a page as the site has it: a file of the repository that is no page becomes its path.

    Args:
        page: The file of the page, relative to the repository.
        text: The text of the link.
        target: The target, relative to the page.

    Raises:
        FileNotFoundError: The target does not exist.
    """
    path, _, anchor = target.partition("#")
    if re.match(r"\w+:", target) or not path:
        return f"[{text}]({target})"
    file = os.path.normpath(os.path.join(os.path.dirname(page), path))
    if not (ROOT / file).exists():
        raise FileNotFoundError(f"{page}: the link to {target} leads nowhere")
    if (name := PAGES.get(file)) or file.startswith("docs/"):
        return f"[{text}]({name or os.path.relpath(file, 'docs')}{anchor and '#' + anchor})"
    return f"`{file}`" if text.strip("`").endswith(os.path.basename(file)) else f"{text} (`{file}`)"


def site_text(page: str, text: str) -> str:
    """Returns the text of a page with its links as the site has them. Code is left alone."""
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.DOTALL | re.MULTILINE)
    whole = "".join(f"\0{number}\0" if number % 2 else part for number, part in enumerate(parts))
    whole = LINK.sub(lambda link: site_link(page, link[1], link[2]), whole)
    return re.sub(r"\0(\d+)\0", lambda number: parts[int(number[1])], whole)


def notebook_page(notebook: dict) -> str:
    """Returns a notebook as Markdown: its text, its code, and the stored text of its outputs."""
    lines = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for output in cell["outputs"]:
            text = output.get("text") or output.get("data", {}).get("text/plain") or []
            if shown := "".join(text).rstrip():
                lines += ["```text", shown, "```", ""]
    return "\n".join(lines)


def api_page() -> str:
    """Returns the page of the Python API, which mkdocstrings fills from the docstrings."""
    lines = [
        "# Python API",
        "",
        "The names of `vivit_train`. [Use it from Python](python.md) shows them at work.",
        "",
    ]
    for title, names in API.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines.append(f"::: vivit_train.{vivit_train.HOMES[name]}.{name}")
            lines += [f"    options: {{members: [{', '.join(MEMBERS[name])}]}}"] if name in MEMBERS else []
            lines.append("")
    return "\n".join(lines)


def write_pages(folder: Path) -> None:
    """Writes every page of the site as Markdown, and the files that the pages show, to a new folder."""
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.jsonl"))
    for page in folder.glob("*.md"):
        page.write_text(site_text(f"docs/{page.name}", page.read_text(encoding="utf-8")), encoding="utf-8")
    for file, name in PAGES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        markdown = notebook_page(json.loads(text)) if file.endswith(".ipynb") else text
        (folder / name).write_text(site_text(file, markdown), encoding="utf-8")
    (folder / "api.md").write_text(api_page(), encoding="utf-8")


def build(site: Path) -> None:
    """Builds the site, which replaces an earlier one in the same folder.

    Raises:
        SystemExit: A link or a reference leads nowhere, or Zensical is not installed.
    """
    with TemporaryDirectory() as temporary:
        project = Path(temporary)
        write_pages(project / "docs")
        shutil.copy(ROOT / "zensical.toml", project)
        (project / "src").symlink_to(ROOT / "src")
        done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=project)
        if done.returncode:
            raise SystemExit("the site was not built: see the messages above")
        if site.exists() and not (site / "404.html").is_file():
            raise SystemExit(f"{site} is not a site, so it is not replaced")
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(project / "site", site)
    sys.stdout.write(f"open {site / 'index.html'}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "site", help="Folder of the site.")
    build(parser.parse_args().site)
