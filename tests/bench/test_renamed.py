"""A proof on a GPU is renewed where the program is the same under other names, and nowhere else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.small_package import write

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import gpu_proof  # noqa: E402
import gpu_renamed  # noqa: E402

PLAN = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from gpucoron.ops import smooth as op, wide
from gpucoron.ops.smooth import WIDTH
if TYPE_CHECKING:
    from gpucoron.pipeline import Job

@dataclass
class Plan:
    size: int
    n_bits: int = WIDTH
    job: Job = None

    def here(self, first, second, brief=False):
        found = [row - second for row in np.asarray(first, dtype="f8")]
        return found if brief else [self.size, *found]

    def told(self, first, own):
        def inner(found):
            return found - own
        return op.smoothed(self.here(first, own, brief=True), inner), wide.smoothed(first)

def made(image, mask):
    try:
        plan = Plan(size=image.size, n_bits=2)
        return choose(plan, np.sum(image, axis=0)), plan.told(image, mask)
    except ValueError as problem:
        return problem, "plan"

def choose(plan, image):
    if plan.n_bits:
        from gpucoron.ops import smooth as ops
    else:
        from gpucoron.ops import wide as ops
    return work(ops, image), ops.smoothed(image)

def work(ops, image):
    return ops.smoothed(image, parity=-1), ops.PIXELS
"""
SMOOTH = """
UNUSED = 1
WIDTH = 3
PIXELS = 5
def smoothed(image, parity=1):
    return parity * image + WIDTH
"""
WIDE = """
PIXELS = 7
def smoothed(image, parity=1):
    return parity * image
"""
PLANS = {"steps__plan": PLAN, "ops__smooth": SMOOTH, "ops__wide": WIDE}


def changed(*pairs):
    """The package with words replaced; everywhere, or in the file that the third one names."""
    files = dict(PLANS)
    for old, new, *where in pairs:
        for name in where or files:
            text = re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _, n=new: n, files[name])
            assert not where or text != files[name]
            files[name] = text
    assert files != PLANS
    return files


IN_PLAN = ("steps__plan",)


@pytest.mark.parametrize(
    "files",
    [
        changed(("here", "activate")),
        changed(("Plan", "Scheme"), ("made", "prepare"), ("choose", "pick")),
        changed(("brief", "pinned"), ("told", "log_it")),
        changed(("n_bits", "n_flags")),
        changed(("found", "rows")),
        changed(("def inner(found)", "def inner(x)"), ("found - own", "x - own")),
        changed(("own", "mine"), ("mask", "weights"), ("second", "offset")),
        changed(("WIDTH", "KERNEL_WIDTH"), ("PIXELS", "BATCH"), ("smoothed", "smooth_all")),
        changed(("parity", "factor")),
        changed(("problem", "error")),
        changed(("Job", "Run")),
        changed(("op", "operation")),
        changed(("np", "numpy"), ("import numpy as numpy", "import numpy")),
        {**changed(("smooth", "soft")), "ops__soft": SMOOTH, "ops__smooth": "OTHER = 1"},
        {
            "steps__one": PLAN[: PLAN.index("def choose")].replace(
                "import WIDTH", "import WIDTH\nfrom gpucoron.steps.two import pick as choose"
            ),
            "steps__two": PLAN[PLAN.index("def choose") :].replace("def choose", "def pick"),
            "ops__smooth": SMOOTH,
            "ops__wide": WIDE,
        },
    ],
)  # fmt: skip
def test_the_same_under_other_names(tmp_path, files):
    old, new = write(tmp_path / "old", PLANS), write(tmp_path / "new", files)
    gpu_renamed.compare(old, new)
    gpu_renamed.compare(new, old)


@pytest.mark.parametrize(
    "files",
    [
        changed(("row - second", "row + second")),
        changed(("WIDTH = 3", "WIDTH = 4")),
        changed(("here", "activate"), ("size=image.size", "size=image.size + 1")),
        changed(("first, second, brief", "second, first, brief")),  # two parameters swapped
        changed(("found - own", "own - found")),
        changed(("brief=False", "brief=True")),
        changed(("np.sum", "np.prod")),
        changed(("np.asarray", "np.array")),
        changed(("size", "shape")),  # numpy's attribute, too
        changed(("size", "extent")),
        changed(("axis", "axes")),
        changed(("dtype", "kind")),
        changed(("f8", "f4")),
        changed(("plan", "scheme")),  # which a string is, too
        changed(("plan", "image", *IN_PLAN)),  # captured
        changed(("found", "first")),
        changed(("found", "np")),
        changed(("image", "Plan", *IN_PLAN)),
        changed(("first", "a"), ("second", "first"), ("a", "second")),
        changed(("first", "second"), ("second", "first", *IN_PLAN)),
        changed(("n_bits", "here")),
        changed(("self.size", "self.n_bits")),
        changed(("brief", "pinned"), ("pinned=True", "brief=True")),
        changed(("size=image.size, n_bits=2", "n_bits=image.size, size=2")),
        changed(("parity", "factor"), ("factor=-1", "parity=-1")),
        changed(("PIXELS", "BATCH", "ops__wide")),
        changed(("op.smoothed", "wide.smoothed")),
        changed(("wide as ops", "x"), ("smooth as ops", "wide as ops"), ("x", "smooth as ops")),
        changed(("ValueError", "TypeError")),
        changed(("Job", "Plan", *IN_PLAN)),
        changed(("*found", "found")),
        changed(("first, own, brief", "own, first, brief")),
        changed(("size: int", "size: int = 1")),
        changed(("size: int\n    n_bits: int = WIDTH", "n_bits: int = WIDTH\n    size: int")),
        changed(("parity * image + WIDTH", "parity * image + PIXELS")),
        changed(("WIDTH", "_"), ("PIXELS", "WIDTH"), ("_", "PIXELS")),
        changed(("WIDTH", "UNUSED"), ("UNUSED = 1", "OTHER = 1")),
        changed(("dtype=", "**")),
    ],
)
def test_what_differs_in_more_than_names(tmp_path, files):
    old, new = write(tmp_path / "old", PLANS), write(tmp_path / "new", files)
    with pytest.raises(gpu_renamed.Differs):
        gpu_renamed.compare(old, new)


def test_a_proof_is_renewed_under_other_names_only(tmp_path, monkeypatch):
    """From the commit that has the proven code, in a repository of its own."""
    root, file = write(tmp_path / "repository", PLANS), tmp_path / "proof.json"
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "proven"]):
        subprocess.run([*git, *command], check=True)
    python = gpu_proof.digest(gpu_proof.definitions(root))
    monkeypatch.setattr(gpu_proof, "ROOT", root)
    monkeypatch.setattr(gpu_proof.checksum, "__defaults__", (root, None))
    monkeypatch.setattr(gpu_proof, "with_ptx", lambda code: code)
    tokens = gpu_proof.checksum()["tokens"]
    proven = {"card": "a", "code": {"python": python, "tokens": tokens, "ptx": "x", "nvrtc": "1"}}
    for files, renewed in (
        (changed(("here", "activate")), True),
        (changed(("here", "activate"), ("row - second", "row + second")), False),
    ):
        write(root, files)
        now = gpu_proof.digest(gpu_proof.definitions(root))
        file.write_text(json.dumps(proven))
        assert now != python and (gpu_proof.renew(file) == "") == renewed
        stored = json.loads(file.read_text())
        assert stored == {
            **proven,
            "code": {**proven["code"], "python": now if renewed else python},
        }
