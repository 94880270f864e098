"""What a measurement was made on: the machine, and versions of packages."""

import contextlib
import importlib.metadata
import os
import platform

import keras


def machine() -> dict:
    """Returns the machine that this process runs on.

    Example:
    >>> sorted(machine())
    ['backend', 'cores', 'devices', 'processor', 'system']
    """
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of those packages that are installed.

    Args:
        *packages: Names of packages.

    Example:
    >>> sorted(versions("keras", "no-such-package"))
    ['keras', 'python']
    """
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
