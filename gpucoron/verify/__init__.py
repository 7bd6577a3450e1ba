"""gpucoron beside the jwst package: run both on one association, compare every product.

`compare_products` compares two folders of products; `verify` runs both pipelines first, each in a
process of its own. ``gpucoron verify ASN`` is `add_arguments` and `run_from_arguments`. Names are
looked up on first use.
"""

from gpucoron._lazy import attach

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

__getattr__, __dir__ = attach(globals(), _MODULE_OF)
