"""Packages whose modules are imported when one of their names is first used."""

import importlib
from collections.abc import Callable, Mapping, Sequence


def names_of(
    package: str, modules: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a package.

    Type checkers and editors need the same names as imports under `TYPE_CHECKING`.

    Args:
        package: Name of the package.
        modules: Names of functions and classes by the module within the package that
            defines them.
        submodules: Modules within the package that are public as they are.

    Returns:
        The pair of functions, as PEP 562 has them.

    Example:
    >>> __getattr__, __dir__ = names_of("json", {"decoder": ("JSONDecoder",)})
    >>> __getattr__("JSONDecoder")
    <class 'json.decoder.JSONDecoder'>
    >>> __dir__()
    ['JSONDecoder']
    """
    defined_in = {name: module for module, names in modules.items() for name in names}

    def get(name):
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        if name in defined_in:
            module = importlib.import_module(f"{package}.{defined_in[name]}")
            return getattr(module, name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get, lambda: sorted([*defined_in, *submodules])
