"""Who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "gpucoron"
FILES = {"astropy.io", "asdf", "gwcs", "stdatamodels", "jwst"}
MAY_READ_FILES = ("io/", "simulate/", "verify", "cli_info")


def statements(node):
    """Every node but those under `if TYPE_CHECKING`, which never run."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from statements(child)


def imports(path):
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    return sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))


FORBIDDEN = {
    "ops/": ("gpucoron.steps", "gpucoron.io", "gpucoron.api", "gpucoron.cli.main",
             "gpucoron.core.stack", "gpucoron.core.parameters"),
    "steps/": ("gpucoron.io", "gpucoron.api", "gpucoron.cli.main", "gpucoron.core.parameters"),
    "io/": ("gpucoron.steps", "gpucoron.ops", "gpucoron.api", "gpucoron.cli.main"),
    "stack.py": ("gpucoron.ops", "gpucoron.steps", "gpucoron.io", "gpucoron.api"),
    "product_run.py": ("gpucoron.cli.main",),
    "report/": ("gpucoron.api", "gpucoron.pipeline.product", "gpucoron.cli.main", "cupy"),
    "simulate/": ("gpucoron.steps", "gpucoron.api", "gpucoron.cli.main"),
}


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module):
    names = set(imports(ROOT / module))
    for folder, forbidden in FORBIDDEN.items():
        if module.startswith(folder):
            wrong = [n for n in names for f in forbidden if n == f or n.startswith(f + ".")]
            assert not wrong, f"{module} must not import {wrong}"
    if not module.startswith(MAY_READ_FILES):
        wrong = [n for n in names for f in FILES if n == f or n.startswith(f + ".")]
        assert not wrong, f"{module} reads files: {wrong}; only io does"


@pytest.mark.parametrize("module", modules())
def test_library_neither_prints_nor_asserts(module):
    allowed_to_print = module.startswith(("cli", "console", "verify"))
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        assert not isinstance(node, ast.Assert), f"{module}:{node.lineno} asserts"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}:{node.lineno} has a bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or allowed_to_print, f"{module}:{node.lineno} prints"
