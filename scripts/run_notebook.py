"""Runs examples/quickstart.ipynb in an empty folder and stores its outputs in it: make notebook."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"
SHOWN_HOME = "/home/you"  # stands for the folder that the notebook ran in


def run(file: Path) -> None:
    """Runs a notebook and replaces its stored outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises an exception.
    """
    notebook = nbformat.read(file, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    with TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=3600, coalesce_streams=True, resources=resources).execute()
        home = os.path.realpath(folder)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of the cells
        if cell.cell_type == "code":
            # Bars need ipywidgets, and stderr has the warnings about it.
            cell.outputs = [output for output in cell.outputs if output.get("name") == "stdout"]
            for output in cell.outputs:
                output.text = output.text.replace(home, SHOWN_HOME).replace(folder, SHOWN_HOME)
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(notebook, file)
    sys.stdout.write(f"written: {file}\n")


if __name__ == "__main__":
    run(NOTEBOOK)
