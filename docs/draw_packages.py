"""Draw the packages of gpucoron and their imports, as Mermaid text, into docs/architecture.md.

    python docs/draw_packages.py

An arrow says that a module of the one package imports one of the other, also inside a function or
for a type; those that follow from others are left out.
"""

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "```mermaid\n", "```\n"


def imports():
    """Return the packages and modules that each package imports, but for what pyproject excepts."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    excepted = {i for contract in settings["contracts"] for i in contract["ignore_imports"]}
    graph = grimp.build_graph("gpucoron", cache_dir=None)
    found = {package: set() for package in graph.find_children("gpucoron")}
    for module in graph.modules - {"gpucoron"}:
        for other in graph.find_modules_directly_imported_by(module) - {"gpucoron"}:
            package, its = (".".join(name.split(".")[:2]) for name in (module, other))
            if package != its and f"{module} -> {other}" not in excepted:
                found[package].add(its)
    return found


def reduced(imports):
    """Leave out imports of what another imported package imports anyhow."""

    def below(package):
        return imports[package].union(*(below(p) for p in imports[package]))

    return {
        package: own - set().union(*(below(p) for p in own)) for package, own in imports.items()
    }


def mermaid():
    """Return the picture as Mermaid text."""
    arrows = sorted(
        f"  {package.removeprefix('gpucoron.')} --> {other.removeprefix('gpucoron.')}"
        for package, others in reduced(imports()).items()
        for other in others
    )
    return "\n".join(["flowchart TD", *arrows, ""])


def drawn(page):
    """Return the text of a page with the picture of the code as it is."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE} has no block that begins with {BEGIN.strip()}")
    return f"{before}{begin}{mermaid()}{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
