"""Packages that only a part of the package needs."""

import importlib
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
