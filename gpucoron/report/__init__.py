"""The report of a run: one HTML file that shows what happened, and opens anywhere.

Names are looked up on first use, so that importing this package costs nothing.
"""

from gpucoron._lazy import attach

_MODULE_OF = {
    "Record": "record",
    "ExposureRecord": "record",
    "make_report": "page",
    "write_report": "page",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = attach(globals(), _MODULE_OF)
