"""What was proven on a GPU: a checksum of the code, and the file that holds it.

The checksum is over the code that decides what a run computes on a device: the tokens of the
kernels, and the modules in PYTHON but for those that import numba, whose loops run on the CPU.
Comments in kernels, docstrings, and the names of modules do not count.
"""

import ast
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROOF = ROOT / "gpucoron" / "backend" / "gpu_proof.json"

#: Modules that work on a device, and packages of them.
PYTHON = "core ops steps pipeline/subtraction backend/arrays backend/cuda backend/transfer".split()
#: Parts of a result that a proof needs; others must be well if they were done.
NEEDED, WELCOME = ("compare", "kernels", "tests"), ("cases", "tiny", "memcheck", "sanitize")


def digest(texts):
    """One checksum of several texts, whatever their order."""
    return hashlib.sha256(
        "\n".join(sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)).encode()
    ).hexdigest()


def checksum(root=ROOT):
    """Of the Python code and of the kernels in a checkout."""
    from gpucoron.backend import cuda

    kernels = [cuda.read_kernels(path.stem) for path in cuda.kernel_files()]
    return {"python": digest(modules(root)), "tokens": digest(map(tokens, kernels))}


def modules(root=ROOT):
    """Yield the modules that work on a device, without their docstrings."""
    for name in PYTHON:
        place = Path(root) / "gpucoron" / name
        paths = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        for path in paths:
            text = path.read_text(encoding="utf-8")
            if not re.search(r"^\s*(import|from) numba\b", text, re.MULTILINE):
                yield without_docstrings(text)


def without_docstrings(text):
    """The lines of a module that hold code or comments."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            said = node.body[0]
            lines[said.lineno - 1 : said.end_lineno] = [""] * (said.end_lineno - said.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


# ---------------------------------------------------------------- kernels
_TOKEN = re.compile(
    r"""
    //[^\n]* | /\*.*?\*/                                    # comments, left out
    | (?P<token> "(?:\\.|[^"\\\n])*" | \.?\d(?:[eEpP][+-]|[\w.]|'(?=\w))* | '(?:\\.|[^'\\\n])*'
    | \w+ | ->\*? | <<=? | >>=? | [<>=!]= | && | \|\| | \+\+ | -- | [-+*/%&|^]= | :: | \#\# | \S)
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens(kernels):
    """Text of a .cu file without comments and spaces, and what is to be compiled of it."""
    lines = []
    whole = re.sub(r"\\\n", " ", kernels.source)
    code = _TOKEN.sub(lambda found: found[0] if found["token"] else " ", whole)
    for line in code.splitlines():
        if re.match(r"\s*#\s*line\b", line):
            continue
        words = [found["token"] for found in _TOKEN.finditer(line) if found["token"]]
        lines += [*words, "\n"] if line.lstrip().startswith("#") else words  # a directive ends
    names = sorted(" ".join(f["token"] for f in _TOKEN.finditer(name)) for name in kernels.names)
    return "\0".join([*lines, *names])


# ---------------------------------------------------------------- the file
def why_no_proof(stored):
    """What keeps a result from proving the code as it is; empty where nothing does."""
    gpu = stored.get("where", {}).get("gpu") or {}
    if not gpu.get("cuda_driver") or gpu["name"] == "Emulated":
        return "it does not come from a real GPU"
    code = checksum()
    for name in (*NEEDED, *WELCOME):
        part = stored.get(name)
        if part is None:
            if name in NEEDED:
                return f"{name}: not done"
        elif not part.get("ok") or part.get("unfinished"):
            which = part.get("names") or part.get("wrong") or [part.get("error", "")]
            return f"{name}: not ok {', '.join(map(str, which))}".strip()
        elif part.get("tiny"):
            return f"{name}: done at tiny sizes"
        elif not part.get("code"):
            return f"{name}: the result does not say of which code it is"
        elif part["code"] != code:
            return f"{name}: the code has changed since"
    return ""


def prove(out, to=PROOF):
    """Write the proof from a result; what kept it from being one, or nothing."""
    stored = json.loads(out.read_text())
    problem = why_no_proof(stored)
    if problem:
        return problem
    from gpucoron import __version__

    gpu, compared = stored["where"]["gpu"], stored["compare"]
    proof = {
        "version": __version__,
        "date": compared["date"],
        "card": gpu["name"],
        "capability": gpu["description"].rpartition(" ")[2],
        "cupy": gpu["cupy"],
        "cuda": gpu["cuda_runtime"],
        "commit": compared["commit"],
        "result": out.name,
        "code": checksum(),
    }
    to.write_text(json.dumps(proof, indent=1) + "\n")
    return ""
