"""Whether two checkouts hold the same program for a GPU under other names (alpha equivalence).

What `gpu_proof.definitions` reaches is compared definition by definition, as syntax trees:
structure, operators, numbers and strings must be identical. Identifiers may differ by maps that
are one-to-one, and whose new names are not old ones of something else:

- definitions by module and name, so that they may move to another module;
- names bound in a function or method by a map of its own, for functions inside of it, too;
- attributes, keywords, and parameters that are given by keyword by one map for all code.

An attribute or keyword may be renamed where our code alone can mean it: our code binds it, no
object of Python or of another package has an attribute of the old or new name, no string equals
it, and a renamed keyword is given to a function of ours. A name that is one of the module or of
Python, too, is not renamed within a function. Where all that cannot be seen, the answer is no.
"""

import builtins
import dis
import importlib
import inspect
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import contextmanager

import gpu_proof
from gpu_names import Differs, Text

COMMITS = 100  # that are looked through for the proven one


@contextmanager
def proven_checkout(python):
    """Give a folder with the package of the newest commit whose checksum is `python`, or None."""
    log = subprocess.run(
        ["git", "log", f"-{COMMITS}", "--format=%H", "--", "gpucoron"],
        cwd=gpu_proof.ROOT,
        capture_output=True,
        text=True,
    )
    for commit in log.stdout.split():
        with tempfile.TemporaryDirectory() as folder:
            gpu_proof.check_out(commit, folder, "gpucoron")
            try:
                proven = gpu_proof.digest(gpu_proof.definitions(folder)) == python
            except ValueError:  # of another layout
                proven = False
            if proven:
                yield folder
                return
    yield None


class _Map:
    """A map that is a function both ways."""

    def __init__(self):
        self.new, self.old = {}, {}

    def add(self, old, new):
        if self.new.setdefault(old, new) != new or self.old.setdefault(new, old) != old:
            raise Differs(f"{old} is {self.new[old]}, and {new} was {self.old.get(new)}")

    def renamed(self):
        """Return what is renamed; no new name may be an old one."""
        renamed = {old: new for old, new in self.new.items() if old != new}
        for name in {*renamed.values()} & {*self.new}:
            raise Differs(f"{self.old[name]} becomes {name}, which is something else already")
        return renamed


def compare(old_root, new_root, entries=gpu_proof.ENTRIES):
    """Compare two checkouts.

    Returns
    -------
    dict
        Old to new, of definitions (module, name) and of attributes (name) that are renamed.

    Raises
    ------
    Differs
        They are not the same program under other names.
    """
    comparison = _Comparison(old_root, new_root)
    comparison.pair_up(
        *(
            {(m, own) for e in entries for m in side.paths if f"{m}.".startswith(f"{e}.")
             for own in side[m].defined}
            for side in comparison.sides
        )
    )  # fmt: skip
    comparison.pair_modules()
    renamed = comparison.shared.renamed()
    comparison.check_shared(renamed)
    return {**comparison.definitions.renamed(), **renamed}


class _Comparison:
    def __init__(self, *roots):
        self.sides = [gpu_proof._Modules(root) for root in roots]
        self.definitions, self.shared, self._unbound = _Map(), _Map(), _Map()
        self._waiting, self._passed = [], []  # pairs: definitions, modules that are passed on
        self._texts = []  # pairs: statements

    def pair_up(self, olds, news):
        """Find which definitions belong together: by name, else as the only two of a structure."""
        for key in (lambda definition, side: definition, self._structure):
            olds, news = olds - self.definitions.new.keys(), news - self.definitions.old.keys()
            one, other = _only(olds, key, 0), _only(news, key, 1)
            for same in sorted(one.keys() & other.keys()):
                self._pair(one[same], other[same])
            while self._waiting:
                self._compare(*self._waiting.pop())
        left = (olds - self.definitions.new.keys()) | (news - self.definitions.old.keys())
        if left:
            raise Differs(f"no counterpart of {', '.join(map('.'.join, sorted(left)))}")

    def pair_modules(self):
        """Compare modules that are passed on as a whole; their definitions are attributes, too."""
        for pair in self._passed:  # which grows
            self.pair_up(
                *({(m, own) for own in s[m].defined} for s, m in zip(self.sides, pair, strict=True))
            )
        for old, _ in self._passed:
            for own in self.sides[0][old].defined:
                self.shared.add(own, self.definitions.new[old, own][1])

    def _structure(self, definition, side):
        return "\n".join(text.skeleton for text in self._read(definition, side))

    def _read(self, definition, side):
        modules, (where, what) = self.sides[side], definition
        return [Text(s, modules[where], modules) for s in modules[where].defined[what]]

    def _pair(self, old, new):
        """Take two definitions for the same, to be compared where `gpu_proof` does."""
        known = old in self.definitions.new
        self.definitions.add(old, new)
        one, other = (side[d[0]] for side, d in zip(self.sides, (old, new), strict=True))
        beside = [m.for_cpu or m.name in gpu_proof.BESIDE for m in (one, other)]
        if old != new and new[0] in self.sides[0].paths:
            if new[1] in self.sides[0][new[0]].defined:
                raise Differs(f"{'.'.join(old)} becomes {new[1]}, which is something else already")
        if beside[0] != beside[1] or (old[1] is None) != (new[1] is None):
            raise Differs(f"{old} is {new}")
        if known or old[1] in gpu_proof.FINDING:
            return
        if old[1] is None:
            self._passed += [] if beside[0] else [(old[0], new[0])]
        elif not beside[0] or one.is_constant(old[1]):
            self._waiting.append((old, new))

    def _compare(self, old, new):
        texts = self._read(old, 0), self._read(new, 1)
        if [t.skeleton for t in texts[0]] != [t.skeleton for t in texts[1]]:
            raise Differs(f"{'.'.join(old)} and {'.'.join(new)} differ in more than names")
        for pair in zip(*texts, strict=True):
            self._texts.append(pair)
            try:
                self._match(*pair)
            except Differs as problem:
                raise Differs(f"{'.'.join(new)}: {problem}") from None

    def _match(self, one, other):
        """Add the identifiers of two statements of the same structure to the maps."""
        local = defaultdict(_Map)
        if [role for role, _ in one.names] != [role for role, _ in other.names]:
            raise Differs("a name is bound elsewhere, or of another package")
        for (role, old), (_, new) in zip(one.names, other.names, strict=True):
            if role == "definitions":
                self._match_definitions(old, new)
            elif role == "shared":
                self.shared.add(old, new)
            elif role == "unbound":
                self._unbound.add(old, new)
            else:
                local[role].add(old, new)
                if old != new and (old in one.everywhere or new in other.everywhere):
                    raise Differs(f"{old} becomes {new}; the module or Python has that name, too")
        for names in local.values():
            names.renamed()

    def _match_definitions(self, olds, news):
        """Match what a name means: one definition, or several where functions import others."""
        olds, news = set(olds), set(news)
        for old in sorted(olds, key=str) if len(olds) > 1 else ():
            where, _ = self.definitions.new.get((old[0], None), old)
            known = self.definitions.new.get(old, (where, old[1]))
            new = news & {known} or {n for n in news if n[0] == where}
            if len(new) == 1:
                self._pair(old, *new)
                olds, news = olds - {old}, news - new
        if len(olds) != len(news) or len(olds) > 1:
            raise Differs(f"{sorted(map(str, olds))} and {sorted(map(str, news))}")
        for old, new in zip(olds, news, strict=True):
            self._pair(old, new)

    def check_shared(self, renamed):
        """Check that attributes and keywords which are renamed are ours, and nothing else is."""
        sides = [*zip(*self._texts, strict=True)]
        given = [{name for text in side for name, _ in text.keywords} for side in sides]
        for one, other in self._texts:
            for old, new in zip(one.parameters, other.parameters, strict=True):
                if old in given[0] or new in given[1]:
                    self.shared.add(old, new)
        renamed.update(self.shared.renamed())
        bound = [{name for text in side for name in text.bound} for side in sides]
        for k, side in enumerate(self.sides):
            bound[k].update(*(side[pair[k]].defined for pair in self._passed))
        strings = [{s for text in side for s in text.strings} for side in sides]
        theirs = _foreign(self.sides) if renamed else ()
        for k, names in enumerate((renamed, renamed.values())):
            for name in names:
                if name not in bound[k]:
                    raise Differs(f"{name} is renamed, or new, but not bound in our code")
                if name in theirs or name in strings[k]:
                    raise Differs(f"{name} is a name in other packages, or a string, too")
        for text in sides[0]:
            for name, callee in text.keywords:
                ours = callee is True or (callee in bound[0] and callee not in theirs)
                if name in renamed and not ours:
                    raise Differs(f"keyword {name} is renamed where it may not be ours")


def _only(items, key, side):
    """Those whose key no other has, by the key."""
    keys = {item: key(item, side) for item in items}
    counts = Counter(keys.values())
    return {k: item for item, k in keys.items() if counts[k] == 1}


def _foreign(sides):
    """Every attribute of Python's objects, and of the packages that our modules import."""
    imported = {
        target
        for side in sides
        for module in side.values()
        for targets in module.imported.values()
        for target in targets
        if not module.for_cpu and target[0].partition(".")[0] != "gpucoron"
    } | {("cupy", None), ("cupyx", None)}
    for where, what in imported:
        getattr(importlib.import_module(where), what or "", None)
    ours = {where.partition(".")[0] for where, _ in imported}
    names, tops = set(dir(builtins)), ours | {"builtins", *sys.stdlib_module_names}
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in ours:
            names.update(dir(module))
    for kind in _classes(object, set()):
        if str(kind.__module__).partition(".")[0] in tops:
            names.update(dir(kind))
            for function in filter(inspect.isfunction, vars(kind).values()):
                names.update(i.argval for i in dis.Bytecode(function) if i.opname == "STORE_ATTR")
    return names


def _classes(kind, seen):
    """Return a class and all that are derived from it."""
    if kind not in seen:
        seen.add(kind)
        for derived in type.__subclasses__(kind):
            _classes(derived, seen)
    return seen
