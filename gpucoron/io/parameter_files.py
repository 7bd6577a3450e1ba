"""Parameter files: our TOML, and those of the jwst package: ASDF ``pars-*``, and ``.cfg``."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpucoron.errors import InputError, one_line
from gpucoron.io.asdf.guard import open_asdf
from gpucoron.io.cfg_files import parse_cfg
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
_STEP_OF_NAME = {step: step for step in _STEP_OF_CLASS.values()}
_STEP_OF_NAME |= {"stackrefs": "stack_refs", "alignrefs": "align_refs"}  # as jwst calls them
_EXPECTED = "a parameter file (TOML, or pars-*.asdf or .cfg of jwst)"
_CFG = re.compile(rb"^[ \t]*class[ \t]*=[ \t]*['\"]?jwst\.", re.MULTILINE)

# Parameters of jwst that choose files, memory or order of work, or that coronagraphy never reads.
_IGNORED = {
    "": "input_dir output_dir output_ext output_file output_use_index output_use_model "
    "save_results search_output_file suffix in_memory".split(),
    "outlier_detection": "backg fillval ifu_second_check kernel kernel_size pixfrac pixmap_order "
    "pixmap_stepsize resample_data rolling_window_width scale "
    "threshold_percent weight_type".split(),
    "resample": ["blendheaders"],
}

# Parameters that these steps had until jwst 0.15 (good_bits), 1.14 or 1.16.
_OBSOLETE = {
    "outlier_detection": "allowed_memory grow nhigh nlow scale_detection".split(),
    "resample": "allowed_memory good_bits".split(),
}

# Parameters that files of jwst leave to the step by the value None.
_NONE_IS_DEFAULT = {"resample": "fillval kernel pixfrac weight_type".split()}

# Parameters of jwst that would change products and that gpucoron does not have; the values that
# ask for nothing.
_UNSUPPORTED: dict[str, dict[str, tuple]] = {
    "": {"pre_hooks": ([], None), "post_hooks": ([], None)},
    "pipeline": {"skip": (False,)},
    "align_refs": {"override_psfmask": (None, "")},
    "resample": {
        "override_drizpars": (None, ""),
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
    """Read a parameter file: TOML, or what the jwst package writes or wrote.

    TOML has a table for each step, ``preset`` and ``align`` at the top. Files of jwst (ASDF of any
    version, or ``.cfg``) are of the whole coronagraphic pipeline or of one of its steps; parameters
    that jwst no longer has are passed over, which the log says.

    Returns
    -------
    list of (str, value)
        ``("klip.truncate", 10)`` and so on, unchecked, in the order of the file.

    Raises
    ------
    InputError
        The file cannot be read, or is none of these.
    """
    path = Path(path)
    content = read_input(path, InputError, _EXPECTED, _LARGEST)
    if content.startswith(b"#ASDF") or _CFG.search(content):
        return _select(path, _jwst_tree(path, content))
    return list(_from_toml(path, content))


def _from_toml(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    try:
        tree = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as problem:  # ValueError: not UTF-8, not TOML, long numbers
        raise InputError(f"{path}: not {_EXPECTED}: {problem}") from None
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _jwst_tree(path: Path, content: bytes) -> dict[str, Any]:
    """Return a file of jwst as a tree: "class", "name", "parameters", and "steps", also trees."""
    if not content.startswith(b"#ASDF"):
        return _tree(path, _from_cfg(path, content))
    try:
        with open_asdf(content, lazy_tree=False) as opened:
            tree = dict(opened)  # plain dicts and lists, also afterwards
    except Exception as problem:  # asdf and yaml raise many kinds; all mean the same here
        raise InputError(
            f"{path}: not a readable ASDF parameter file: {one_line(problem)}"
        ) from None
    parameters = tree.get("parameters")
    if "class" not in tree and isinstance(parameters, dict) and "class" in parameters:
        return _tree(path, parameters)
    steps = tree.get("steps") or []
    if not isinstance(steps, list) or not all(isinstance(e, dict) for e in steps):
        raise InputError(f"{path}: steps are no list of mappings")
    return tree | {"steps": steps}


def _from_cfg(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return parse_cfg(content.decode("utf-8-sig"))
    except ValueError as problem:  # not UTF-8, too
        raise InputError(f"{path}: not a parameter file of jwst (.cfg): {problem}") from None


def _tree(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Make a tree of what has class, name and steps among its parameters."""
    parameters = dict(entries)
    kind, name, steps = (parameters.pop(key, None) for key in ("class", "name", "steps"))
    if not isinstance(steps, dict | None) or not all(
        isinstance(step, dict) for step in (steps or {}).values()
    ):
        raise InputError(f"{path}: steps are no mapping of names to parameters")
    inner = [_tree(path, {"name": key} | step) for key, step in (steps or {}).items()]
    return {"class": kind, "name": name, "parameters": parameters, "steps": inner}


def _select(path: Path, tree: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what means something here; say what does not."""
    kind = _checked_class(path, tree, f"{_PIPELINE} or one of ", (_PIPELINE, *_STEP_OF_CLASS))
    parts = [("pipeline" if kind == _PIPELINE else _STEP_OF_CLASS[kind], tree.get("parameters"))]
    for entry in tree.get("steps") or [] if kind == _PIPELINE else []:
        name = str(entry.get("name"))
        step = _STEP_OF_CLASS.get(_last(entry.get("class"))) or _STEP_OF_NAME.get(name, name)
        parts.append((step, _with_its_file(path, entry.get("parameters"))))
    obsolete: list[str] = []
    found = [pair for step, values in parts for pair in _of_step(path, step, values, obsolete)]
    if obsolete:
        text = "%s: passing over %s, which jwst no longer has"
        log.info(text, path, ", ".join(sorted(obsolete)))
    return found


def _last(kind: Any) -> str:
    return str(kind or "").rpartition(".")[2]


def _checked_class(path: Path, tree: dict[str, Any], what: str, known: Iterable[str]) -> str:
    """Return the class whose parameters a file holds, which must be one of those known."""
    kind = _last(tree.get("class"))
    if kind not in known:
        raise InputError(
            f"{path}: holds parameters of {kind or 'nothing'}; expected {what}"
            + ", ".join(_STEP_OF_CLASS)
        )
    return kind


def _with_its_file(path: Path, parameters: Any) -> Any:
    """Put parameters of a step over those of the file that they name as config_file."""
    if not isinstance(parameters, dict) or "config_file" not in parameters:
        return parameters
    own = dict(parameters)
    file = path.parent / str(own.pop("config_file"))
    tree = _jwst_tree(file, read_input(file, InputError, _EXPECTED, _LARGEST))
    _checked_class(file, tree, "one of ", _STEP_OF_CLASS)
    below = tree.get("parameters")
    return {**below, **own} if isinstance(below, dict) else own


def _same(value, other) -> bool:
    return type(value) in (type(other), int, float) and bool(value == other)


def _of_step(
    path: Path, step: str, parameters: Any, obsolete: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the parameters of a step that it has here; add to `obsolete` what jwst had once."""
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
        elif name in _OBSOLETE.get(step, []):
            obsolete.append(f"{step}.{name}")
        elif name in ignored or value is None and name in _NONE_IS_DEFAULT.get(step, []):
            log.debug("%s: %s.%s is of no use here", path, step, name)
        else:
            yield f"{step}.{name}", value
