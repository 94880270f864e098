"""What a measurement was made on: the machine, and versions of packages."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform

import keras
import psutil

_CONTAINER = "/sys/fs/cgroup"


def machine() -> dict:
    """Returns the machine that this process runs on.

    Example:
    >>> sorted(machine())
    ['backend', 'cores', 'devices', 'processor', 'system']
    """
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": keras.distribution.list_devices(),
    }


def _processor():
    """Returns the processor by its model, where the system tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def memory(peak: bool = False) -> int | None:
    """Returns the bytes of memory of this process; None where the system does not tell.

    `resource.getrusage` has the peak of the process that started this one.

    Args:
        peak: Whether to return the most that it ever had. Defaults to `False`, what it
            has now.

    Example:
    >>> memory(peak=True) >= memory()  # doctest: +SKIP
    True
    """
    name = "VmHWM:" if peak else "VmRSS:"
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name):
                return 1024 * int(line.split()[1])
    return None


def free_memory() -> int:
    """Returns the bytes of memory that are free now, within the limit of a container.

    Example:
    >>> free_memory() > 0
    True
    """
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no limit, or another system
        limit, used = (
            int(pathlib.Path(_CONTAINER, f"memory.{name}").read_text())
            for name in ("max", "current")
        )
        free = min(free, max(limit - used, 0))
    return free


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
