"""Modules imported by name: packages that a part of ours needs, people's own."""

import importlib
import os
import sys
import types


def optional_module(module: str, purpose: str, requirement: str) -> types.ModuleType:
    """Imports a package that may not be installed.

    Args:
        module: Name of the module.
        purpose: What it is needed for.
        requirement: What to give to `pip install` for it.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; says what to install.

    Example:
    >>> optional_module("json", "an example", "python").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Expected `{module}` to be installed for {purpose}. "
            f"Received: {error}. Run: pip install {requirement}"
        ) from error


def own_module(module: str) -> types.ModuleType:
    """Imports somebody's module, also from the current folder, as `python -m` has it.

    Args:
        module: Name of the module.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If it, or one that it imports, is not there.

    Example:
    >>> own_module("json").__name__
    'json'
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(module)
