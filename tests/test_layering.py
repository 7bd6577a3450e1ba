"""Only io reads FITS, ASDF and WCS; who may import whom is import-linter's to check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "gpucoron"
FILES = {"astropy.io", "asdf", "gwcs", "stdatamodels", "jwst"}
MAY_READ_FILES = ("io/", "simulate/", "verify/", "cli/info")


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


@pytest.mark.parametrize(
    "package", sorted({p.relative_to(ROOT).parts[0] for p in ROOT.rglob("*.py")})
)
def test_only_io_reads_files(package):
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        if module.split("/")[0] == package and not module.startswith(MAY_READ_FILES):
            wrong = [n for n in imports(path) for f in FILES if n == f or n.startswith(f + ".")]
            assert not wrong, f"{module} reads files: {wrong}"
