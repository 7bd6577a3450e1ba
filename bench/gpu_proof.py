"""What was proven on a GPU: a checksum of the code, and the file that holds it.

The checksum is over all that decides what a run computes on a device. Of the kernels: the PTX that
NVRTC makes of them; where that is another NVRTC, or none, their tokens. Of the Python: the syntax
trees of every definition that the modules in ENTRIES reach through their imports, but for modules
that import numba, whose loops run on the CPU, and what BESIDE and FINDING name. Comments,
docstrings, formatting, names of files and modules, the order of definitions, and which of them
share a file do not count, nor do type annotations, but for those of class bodies, which make the
fields of a dataclass. It is the same with every version of Python.
"""

import ast
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROOF = ROOT / "gpucoron" / "backend" / "gpu_proof.json"
ARCH = 90  # a virtual architecture: PTX depends on it

#: Modules that work on a device, or packages of them.
ENTRIES = ("gpucoron.steps", "gpucoron.pipeline.subtraction", "gpucoron.backend.transfer")
#: Definitions that find files, whose contents are looked at by themselves.
FINDING = ("_folder",)
#: Modules that tell or note something, and compute nothing.
BESIDE = ("gpucoron.backend.kernel_cache",)
#: Parts of a result that a proof needs; others must be well if they were done.
NEEDED, WELCOME = ("compare", "kernels", "tests"), ("cases", "tiny", "memcheck", "sanitize")


def digest(texts):
    """One checksum of several texts, whatever their order."""
    return hashlib.sha256(
        "\n".join(sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)).encode()
    ).hexdigest()


def checksum(root=ROOT, kernels=None):
    """Of the code in a checkout, and of its kernels or those given (source, names)."""
    from gpucoron.backend import cuda

    if kernels is None:
        kernels = [cuda.read_kernels(path.stem) for path in cuda.kernel_files()]
    return {"python": digest(definitions(root)), "tokens": digest(map(tokens, kernels))}


def with_ptx(code, kernels=None):
    """The same with the checksum of the PTX, where NVRTC is at hand."""
    from gpucoron.backend import cuda
    from tests.helpers import nvrtc

    if not nvrtc.find():
        return code
    if kernels is None:
        kernels = [cuda.read_kernels(path.stem) for path in cuda.kernel_files()]
    texts = [bare(nvrtc.ptx(k.source, ARCH, k.names, cuda.OPTIONS)) for k in kernels]
    return {**code, "ptx": digest(texts), "nvrtc": nvrtc.version()}


def same(one, other):
    """Whether two checksums are of code that computes the same."""
    if one["python"] != other["python"]:
        return False
    if one.get("nvrtc") and one["nvrtc"] == other.get("nvrtc"):
        return one["ptx"] == other["ptx"]
    return one["tokens"] == other["tokens"]


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


def bare(ptx):
    """PTX without comments, numbers of functions in labels, and names that differ by process."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"\$L__BB\d+_", "$L__BB_", ptx)
    out = []  # of an unnamed namespace: a length, and that many characters
    while found := re.search(r"(\d+)_(INTERNAL|GLOBAL__N)_", ptx):
        out += [ptx[: found.start()], "_unnamed"]
        ptx = ptx[found.end(1) + int(found[1]) :]
    ptx = "".join([*out, ptx])
    return "\n".join(line.strip() for line in ptx.splitlines() if line.strip())


# ---------------------------------------------------------------- Python
def definitions(root=ROOT, entries=ENTRIES):
    """Yield the text of every definition that `entries` reach, with the constants that it names."""
    modules = _Modules(root)
    waiting = [
        (name, own)
        for name in modules.paths
        for own in (
            modules[name].defined if any(f"{name}.".startswith(f"{e}.") for e in entries) else ()
        )
    ]
    if not waiting:
        raise ValueError(f"none of {', '.join(entries)} is in {root}")
    seen = set(waiting)
    while waiting:
        name, own = waiting.pop()
        if own in FINDING:
            continue
        module, texts = modules[name], []
        for statement in module.defined[own]:
            named = {
                found[:2] for node in _nodes(statement) for found in module.targets(node, modules)
            }
            constants = {target for target in named if modules[target[0]].is_constant(target[1])}
            texts += [_text(statement, module, modules)] + sorted(
                _text(s, modules[where], modules)
                for where, what in constants
                for s in modules[where].defined[what]
            )
            for where, what in named:
                everything = modules[where].defined if what is None else (what,)
                fresh = {(where, own) for own in everything} - seen
                if not modules[where].for_cpu and where not in BESIDE:
                    seen |= fresh
                    waiting += sorted(fresh)
        yield "\n".join(texts)


class _Modules(dict):
    """The modules of the package by name, read when they are asked for."""

    def __init__(self, root):
        super().__init__()
        self.paths = {}
        for path in sorted((Path(root) / "gpucoron").rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            self.paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def __missing__(self, name):
        tree = ast.parse(self.paths[name].read_text(encoding="utf-8"))
        self[name] = _Module(name, _Untyped().visit(tree))
        return self[name]


class _Untyped(ast.NodeTransformer):
    """Leaves out what is there for a type checker only."""

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        node.body = [s if isinstance(s, ast.AnnAssign) else self.visit(s) for s in node.body]
        return node

    def visit_AnnAssign(self, node):
        return node.value and ast.Assign([node.target], node.value)

    def visit_If(self, node):
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return node.orelse
        return self.generic_visit(node)


class _Module:
    """What a module defines and imports."""

    def __init__(self, name, tree):
        self.name, self.defined, self.imported, self.for_cpu = name, {}, {}, False
        for statement in tree.body:
            for own in _bound(statement):
                self.defined.setdefault(own, []).append(statement)
        self.defined.pop("__all__", None)
        for node in _nodes(tree):
            if isinstance(node, ast.Import):
                self.for_cpu |= any(a.name.partition(".")[0] == "numba" for a in node.names)
                for a in node.names:
                    top = a.name.partition(".")[0]
                    self._imports(a.asname or top, (a.name if a.asname else top, None))
            elif isinstance(node, ast.ImportFrom):
                self.for_cpu |= (node.module or "").partition(".")[0] == "numba"
                for a in node.names:
                    self._imports(a.asname or a.name, (node.module, a.name))

    def _imports(self, name, what):
        """Note what a name stands for; in two functions it may be two things."""
        self.imported.setdefault(name, set()).add(what)

    def is_constant(self, name):
        return name is not None and all(
            isinstance(s, (ast.Assign, ast.AnnAssign)) for s in self.defined[name]
        )

    def targets(self, node, modules):
        """The definitions of ours that a name or chain of attributes begins with.

        As (module, name, further attributes). The name is None where a whole module is meant, to
        be passed on.
        """
        parts = _parts(node)
        if not parts:
            return set()
        if parts[0] not in self.imported:
            return {(self.name, parts[0], parts[1:])} if parts[0] in self.defined else set()
        found = set()
        for where, what in self.imported[parts[0]]:
            rest = (() if what is None else (what,)) + parts[1:]
            while rest and f"{where}.{rest[0]}" in modules.paths:
                where, rest = f"{where}.{rest[0]}", rest[1:]
            if where not in modules.paths:
                continue
            if not rest:
                found.add((where, None, ()))
            elif rest[0] in modules[where].defined:
                found.add((where, rest[0], rest[1:]))
            else:  # passed on from elsewhere
                more = modules[where].targets(ast.Name(rest[0]), modules)
                if not more:
                    raise ValueError(f"{self.name}: {where} does not define {rest[0]}")
                found |= {(*target[:2], rest[1:]) for target in more}
        return found


def _bound(statement):
    """Names that a statement at the top of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    return sorted(
        {
            node.id
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
    )


def _nodes(node):
    """All that runs; of a chain of names and attributes only the whole."""
    yield node
    while isinstance(node, ast.Attribute) and _parts(node):
        node = node.value
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)


def _parts(node):
    """("a", "b", "c") of a.b.c; empty for anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    inner = _parts(node.value) if isinstance(node, ast.Attribute) else ()
    return (*inner, node.attr) if inner else ()


_LEFT_OUT = {"ctx", "type_comment", "kind", "type_ignores"}


def _text(node, module, modules):
    """A syntax tree as text: no positions, docstrings, imports, or names of modules of ours."""

    def show(value):
        if isinstance(value, list):
            kept = [show(v) for v in value if not isinstance(v, (ast.Import, ast.ImportFrom))]
            return f"[{','.join(kept)}]"
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, (ast.Name, ast.Attribute)):
            found = {
                (what or "a module", *rest) for _, what, rest in module.targets(value, modules)
            }
            if found:
                return repr(sorted(found))
            if isinstance(value, ast.Name) and value.id in module.imported:
                return repr(sorted(what or where for where, what in module.imported[value.id]))
        fields = dict(ast.iter_fields(value))
        body = fields.get("body")
        if isinstance(value, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and _says(body):
            fields["body"] = body[1:]
        if isinstance(value, ast.JoinedStr):
            fields["values"] = _merged(value.values)
        if isinstance(value, ast.Call) and _parts(value.func)[-1:] == ("kernel",):
            fields["args"] = value.args[1:]  # the first one names a file
        return (
            type(value).__name__
            + "("
            + ",".join(
                f"{name}={show(v)}"
                for name, v in fields.items()
                if name not in _LEFT_OUT and v is not None and v != []
            )
            + ")"
        )

    return show(node)


def _says(body):
    return (
        bool(body)
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )


def _merged(values):
    """Parts of an f-string, its texts put together as they may be or not."""
    out = []
    for value in values:
        if isinstance(value, ast.Constant) and out and isinstance(out[-1], ast.Constant):
            out[-1] = ast.Constant(out[-1].value + value.value)
        else:
            out.append(value)
    return [v for v in out if not (isinstance(v, ast.Constant) and v.value == "")]


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
        elif not same(part["code"], code):
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
        "code": with_ptx(checksum()),
    }
    to.write_text(json.dumps(proof, indent=1) + "\n")
    return ""


def renew(to=PROOF):
    """Store the checksum of kernels that are written differently and compile to the proven PTX.

    Returns what prevents that; empty where nothing does.
    """
    proof, code = json.loads(to.read_text()), with_ptx(checksum())
    if "ptx" not in code or not same(proof["code"], code):
        return "the code, or NVRTC, is not that of the proof"
    to.write_text(json.dumps({**proof, "code": code}, indent=1) + "\n")
    return ""
