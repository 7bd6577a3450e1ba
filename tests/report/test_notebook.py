"""docs/notebook.ipynb, cell by cell."""

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def cells():
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == "code"]


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names, shown = {}, []
    for number, text in enumerate(cells()):
        tree = ast.parse(text)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    printed = capsys.readouterr().out
    assert any(hasattr(value, "savefig") for value in shown)
    for planet in names["made"].planets:  # found within the two decimals that are shown
        assert printed.count(f'{planet.separation:.2f}" at') == 2  # as found, as simulated
    assert "_report.html" in printed and "RA---TAN" in printed


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
