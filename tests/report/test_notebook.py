"""docs/notebook.ipynb in a kernel of Jupyter, as a user sees it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def outputs(cell):
    """Return what a cell shows, by kind; a kind that it shows twice is joined."""
    found = {}
    for output in cell.get("outputs", ()):
        data = {output.name: output.text} if "text" in output else output.get("data", {})
        for kind, text in data.items():
            found[kind] = found.get(kind, "") + text
    return found


def test_every_cell_runs_and_the_figure_is_a_picture(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed here")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed here")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), *sys.path]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    more = "result", "made.planets"
    notebook.cells += [nbformat.v4.new_code_cell(text) for text in more]
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (figure,) = (cell for cell in code if cell.source.rstrip().endswith(".plot()"))
    assert len(outputs(figure)["image/png"]) > 10_000
    (run,) = (cell for cell in code if "gpucoron.run(" in cell.source)
    (warned,) = (outputs(cell)["text/plain"] for cell in code if cell.source == "result.warnings")
    assert ("gpucoron warning: " in outputs(run).get("stderr", "")) == (warned != "()")
    progress = run.outputs[0] if "data" in run.outputs[0] else run.outputs[-2]
    assert progress.data["text/plain"] == ""  # the line of progress, empty at the end
    printed = "".join(outputs(cell).get("stdout", "") for cell in code)
    assert "_report.html" in printed and "RA---TAN" in printed
    shown = outputs(code[-2])
    assert len(shown["text/plain"]) < 600 and "<table>" in shown["text/html"]
    simulated = [line.split(" at ")[0] for line in printed.splitlines() if "contrast" in line]
    assert len(simulated) == 3
    (table,) = (outputs(cell)["text/plain"] for cell in code if "candidates(" in cell.source)
    found = [float(row.split()[0]) for row in table.splitlines() if re.match(r" *\d", row)]
    assert len(found) == 3
    for separation in simulated:
        assert min(abs(value - float(separation[:-1])) for value in found) < 0.02


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
