"""Names imported when they are first asked for, so that importing a package costs nothing."""

from importlib import import_module


def attach(namespace, module_of, packages=()):
    """Make a package's ``__getattr__`` and ``__dir__``.

    Parameters
    ----------
    namespace : dict
        The package's ``globals()``; what was looked up once is kept there.
    module_of : dict of str to str
        Public name to the module inside the package that defines it.
    packages : tuple of str
        Subpackages that are public themselves.

    Returns
    -------
    callable, callable
    """
    package = namespace["__name__"]

    def get(name):
        if name in packages:
            return import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        namespace[name] = value
        return value

    def names():
        return sorted({*namespace, *module_of, *packages})

    return get, names
