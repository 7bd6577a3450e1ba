"""A definition read apart: its structure, and the identifiers in it with what they may mean.

Used by `gpu_renamed`, which compares the identifiers of two checkouts.
"""

import ast
import builtins
from types import SimpleNamespace

import gpu_proof

MODULE, CLASS = "module", "class"  # scopes, besides those of functions
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
IDENTIFIERS = {  # fields that hold one
    **dict.fromkeys((*DEFINITIONS, ast.ExceptHandler), "name"),
    **{ast.Attribute: "attr", ast.keyword: "arg", ast.arg: "arg"},
}
REFUSED = (ast.Global, ast.Nonlocal, ast.Match)


class Differs(Exception):
    """The programs are not the same under other names, or that cannot be seen."""


class Text:
    """A statement at the top of a module: its structure as text, and its identifiers beside.

    Attributes
    ----------
    skeleton : str
    names : list of (role, identifier)
        In the order of the text. Role: "definitions" (a set), "shared", a function's number, or
        "unbound": imported for type checking alone, in annotations, which are not evaluated.
    keywords : list of (name, callee)
        Callee: True for a definition of ours, the attribute that is called, else None.
    parameters, bound, strings : list of str
        Bound: attributes that classes bind and ``x.name =`` stores, and parameters.
    everywhere : set of str
        Names that are not to be renamed in functions.
    """

    def __init__(self, statement, module, modules):
        self._statement, self._module, self._modules = statement, module, modules
        self.names, self.keywords = [], []
        self.parameters, self.bound, self.strings = [], [], []
        self.everywhere = {*module.defined, *module.imported, *dir(builtins)}
        self._known = self.everywhere | (
            _binds(statement) if isinstance(statement, ast.ClassDef) else set()
        )
        self._functions = 0
        self.skeleton = self._show(statement, MODULE, ())

    def _show(self, value, scope, local):
        """Show a field; `local` names are bound in the function that `scope` is."""
        if isinstance(value, list):
            return f"[{','.join(self._show(v, scope, local) for v in value)}]"
        if isinstance(value, str):
            self.strings.append(value)
        if not isinstance(value, ast.AST):
            return repr(value)
        if isinstance(value, REFUSED) or (isinstance(value, ast.ClassDef) and scope != MODULE):
            raise Differs(f"line {value.lineno}: {type(value).__name__} is not looked into")
        if isinstance(value, (ast.Import, ast.ImportFrom)):
            return self._imports(value)
        if isinstance(value, (ast.Name, ast.Attribute)) and self._chain(value, scope, local):
            return "name"
        fields = {k: v for k, v in ast.iter_fields(value) if k not in gpu_proof._LEFT_OUT}
        if isinstance(value, DEFINITIONS) and gpu_proof._says(value.body):
            fields["body"] = value.body[1:]
        if isinstance(value, ast.JoinedStr):
            fields["values"] = gpu_proof._merged(value.values)
        if isinstance(value, (ast.Call, ast.ClassDef)):
            self._keywords(value, local)
        field = IDENTIFIERS.get(type(value))
        if fields.get(field) and value is not self._statement:
            self._identifier(value, fields[field], scope, local)
        if field in fields:
            fields[field] = fields[field] is not None
        if isinstance(value, FUNCTIONS) and scope in (MODULE, CLASS):
            self._functions += 1
            scope, local = self._functions, self._enter(value)
        elif isinstance(value, ast.ClassDef):
            scope = CLASS
        kept = (f"{k}={self._show(v, scope, local)}" for k, v in fields.items())
        return f"{type(value).__name__}({','.join(kept)})"

    def _enter(self, function):
        """Return the names that a function binds, with those in functions inside of it."""
        heads = [*getattr(function, "decorator_list", ()), getattr(function, "returns", None)]
        for head in (function.args, *filter(None, heads)):  # is looked up outside
            self.everywhere |= {n.id for n in ast.walk(head) if isinstance(n, ast.Name)}
        return _binds(function)

    def _chain(self, node, scope, local):
        """Note what a name, or a chain of attributes, means; False where its parts are to come."""
        parts = gpu_proof._parts(node)
        if isinstance(node, ast.Attribute) and (not parts or parts[0] in local):
            return False
        targets = self._module.targets(node, self._modules)
        definitions = frozenset((where, what) for where, what, _ in targets)
        rests = {rest for _, _, rest in targets}
        if isinstance(node, ast.Attribute):
            if len(rests) != 1:
                return False
            self.names.append(("definitions", definitions))
            self.names += [("shared", attribute) for attribute in rests.pop()]
            return True
        if node.id in local:
            self.names.append((scope, node.id))
        if definitions:
            self.names.append(("definitions", definitions))
        elif node.id in local:
            pass
        elif node.id in self._module.imported:
            self.names.append((str(sorted(map(str, self._module.imported[node.id]))), ""))
        elif node.id in self._known:
            self._identifier(node, node.id, scope, local)
        else:
            self.names.append(("unbound", node.id))
        return True

    def _identifier(self, node, name, scope, local):
        if isinstance(node, ast.arg):
            self.parameters.append(name)
            self.bound.append(name)
        elif scope == CLASS or isinstance(node, ast.Attribute):
            if not isinstance(getattr(node, "ctx", None), ast.Load):
                self.bound.append(name)
        shared = isinstance(node, (ast.Attribute, ast.keyword)) or name not in local
        self.names.append(("shared" if shared else scope, name))

    def _imports(self, node):
        """Show an import inside a function by what it means."""
        for alias in node.names:
            what = (alias.name, None) if isinstance(node, ast.Import) else (node.module, alias.name)
            probe = SimpleNamespace(name=None, defined=(), imported={"_": {what}})
            targets = gpu_proof._Module.targets(probe, ast.Name("_"), self._modules)
            if targets:
                self.names.append(("definitions", frozenset(t[:2] for t in targets)))
            else:
                self.names.append((f"import {what}", ""))
        return f"import({len(node.names)})"

    def _keywords(self, node, local):
        """Note the keywords of a call, and whether a function of ours gets them."""
        function = getattr(node, "func", None)
        parts = gpu_proof._parts(function)
        callee = function.attr if isinstance(function, ast.Attribute) else None
        if parts and parts[0] not in local and self._module.targets(function, self._modules):
            callee = True
        self.keywords += [(k.arg, callee) for k in node.keywords if k.arg]


def _binds(top):
    """Return the names that a function or class binds, with those in functions inside of it."""
    names = set()
    for node in ast.walk(top):
        if isinstance(node, (ast.arg, ast.ExceptHandler, *DEFINITIONS)) and node is not top:
            names.add(getattr(node, IDENTIFIERS[type(node)]))
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
    return names
