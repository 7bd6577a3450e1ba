"""Parameter files: our TOML, and the jwst package's parameter reference files (ASDF ``pars-*``)."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpucoron.errors import InputError, one_line
from gpucoron.io.asdf.guard import open_asdf
from gpucoron.io.files import read_input

__all__ = ["read_parameters"]

log = logging.getLogger("gpucoron")

_LARGEST = 16 << 20  # bytes
_STEP_OF_CLASS = {
    "OutlierDetectionStep": "outlier_detection",
    "StackRefsStep": "stack_refs",
    "AlignRefsStep": "align_refs",
    "KlipStep": "klip",
    "ResampleStep": "resample",
}
_PIPELINE = "Coron3Pipeline"

# Parameters of jwst that choose files, memory or order of work, or that coronagraphy never reads.
_IGNORED = {
    "": "input_dir output_dir output_ext output_file output_use_index output_use_model "
    "save_results search_output_file suffix in_memory".split(),
    "outlier_detection": "backg fillval ifu_second_check kernel kernel_size pixfrac pixmap_order "
    "pixmap_stepsize resample_data rolling_window_width scale "
    "threshold_percent weight_type".split(),
    "resample": ["blendheaders"],
}

# Parameters of jwst that would change products and that gpucoron does not have; the values that
# ask for nothing.
_UNSUPPORTED: dict[str, dict[str, tuple]] = {
    "": {"pre_hooks": ([], None), "post_hooks": ([], None)},
    "pipeline": {"skip": (False,)},
    "align_refs": {"override_psfmask": (None, "")},
    "resample": {
        "single": (False,),
        "enable_ctx": (True,),
        "enable_err": (True,),
        "report_var": (True,),
        "propagate_dq": (False,),
        "pixmap_stepsize": (1.0,),
        "pixmap_order": (1,),
    },
}


def read_parameters(path: str | Path) -> list[tuple[str, Any]]:
    """Read a parameter file: TOML, or ASDF as the jwst package writes it.

    TOML has a table for each step, ``preset`` and ``align`` at the top; ASDF is of the whole
    coronagraphic pipeline or of one of its steps.

    Returns
    -------
    list of (str, value)
        ``("klip.truncate", 10)`` and so on, unchecked, in the order of the file.

    Raises
    ------
    InputError
        The file cannot be read, or is neither of the two.
    """
    path = Path(path)
    content = read_input(path, InputError, "a parameter file (TOML, or ASDF pars-*)", _LARGEST)
    return list((_from_asdf if content.startswith(b"#ASDF") else _from_toml)(path, content))


def _from_toml(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    try:
        tree = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as problem:  # ValueError: not UTF-8, not TOML, long numbers
        raise InputError(
            f"{path}: not a parameter file (TOML, or ASDF pars-*): {problem}"
        ) from None
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _from_asdf(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    try:
        with open_asdf(content, lazy_tree=False) as tree:
            pass  # plain dicts and lists, also afterwards
    except Exception as problem:  # asdf and yaml raise many kinds; all mean the same here
        raise InputError(
            f"{path}: not a readable ASDF parameter file: {one_line(problem)}"
        ) from None
    kind = str(tree.get("class", "")).rpartition(".")[2]
    if kind == _PIPELINE:
        yield from _select(path, "pipeline", tree.get("parameters"))
        steps = tree.get("steps") or []
        if not isinstance(steps, list) or not all(isinstance(e, dict) for e in steps):
            raise InputError(f"{path}: steps are no list of mappings")
        for entry in steps:
            step = _STEP_OF_CLASS.get(str(entry.get("class", "")).rpartition(".")[2])
            yield from _select(path, step or str(entry.get("name")), entry.get("parameters"))
    elif kind in _STEP_OF_CLASS:
        yield from _select(path, _STEP_OF_CLASS[kind], tree.get("parameters"))
    else:
        raise InputError(
            f"{path}: holds parameters of {kind or 'nothing'}; expected {_PIPELINE} or one of "
            + ", ".join(_STEP_OF_CLASS)
        )


def _same(value, other) -> bool:
    return type(value) in (type(other), int, float) and bool(value == other)


def _select(path: Path, step: str, parameters) -> Iterator[tuple[str, Any]]:
    """Pass on what means something here; say what does not."""
    ignored = [*_IGNORED[""], *_IGNORED.get(step, [])]
    unsupported = _UNSUPPORTED[""] | _UNSUPPORTED.get(step, {})
    if not isinstance(parameters, dict | None):
        raise InputError(f"{path}: parameters of {step} are no mapping of names to values")
    for name, value in (parameters or {}).items():
        if name in unsupported:
            if not any(_same(value, harmless) for harmless in unsupported[name]):
                found = f"{step}.{name} = {value!r}"
                hint = "; use --psfmask" if name == "override_psfmask" else ""
                log.warning("%s: %s is not supported here and changes nothing%s", path, found, hint)
        elif name in ignored:
            log.debug("%s: %s.%s is of no use here", path, step, name)
        else:
            yield f"{step}.{name}", value
