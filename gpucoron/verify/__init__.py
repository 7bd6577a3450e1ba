"""gpucoron beside the jwst package: run both on one association, compare every product.

`compare_products` compares two folders of products; `verify` runs both pipelines first, each in a
process of its own. ``gpucoron verify ASN`` is `add_arguments` and `run_from_arguments`. Names are
looked up on first use.
"""

from importlib import import_module

_MODULE_OF = {
    "HduDifference": "compare",
    "KeywordDifference": "headers",
    "PeerError": "runs",
    "Report": "report",
    "ShiftDifference": "compare",
    "TableDifference": "compare",
    "add_arguments": "command",
    "compare_products": "report",
    "run_from_arguments": "command",
    "verify": "command",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    """Import what a public name stands for when it is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
