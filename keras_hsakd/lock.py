"""Places that one process at a time writes to."""

import contextlib
import datetime
import errno
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator

from keras_hsakd.files import errors_explained, remove_partial

NAME = ".keras_hsakd.lock"

# What file systems without locks say.
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[bool]:
    """Keeps other processes from writing to a folder, within the context.

    The system frees the lock of a process that dies; files that it has half written are
    removed. A folder that is missing is made, and removed in the end if nothing came
    into it. Where there are no locks, a warning says so.

    Args:
        folder: The folder.

    Yields:
        Whether there are locks.

    Raises:
        BlockingIOError: If somebody else writes to the folder; says who.
        OSError: If it cannot be written.

    Example:
    >>> with held("run"):
    ...     os.listdir("run")
    ['.keras_hsakd.lock']
    >>> os.path.exists("run")
    False
    """
    with _held(os.path.join(folder, NAME), folder) as is_locked:
        if is_locked:
            remove_partial(folder)
        yield is_locked


@contextlib.contextmanager
def held_beside(path: str | os.PathLike) -> Iterator[bool]:
    """Does as `held` for what gets its name when it is whole.

    Args:
        path: The path; the file of the lock lies beside it.

    Yields:
        As `held`.

    Raises:
        BlockingIOError: As `held`.
        OSError: As `held`.

    Example:
    >>> with held_beside("cache"):
    ...     os.listdir(".")
    ['.cache.lock']
    """
    parent, name = os.path.split(os.path.abspath(path))
    with _held(os.path.join(parent, f".{name}.lock"), path) as is_locked:
        if is_locked:
            remove_partial(parent, name)
        yield is_locked


@contextlib.contextmanager
def _held(path, what):
    path, what = os.path.abspath(path), os.fspath(what)
    with _made(os.path.dirname(path)):
        file, is_locked = _taken(path, what)
        with file:
            try:
                yield is_locked
            finally:
                # Before it is free, so that nobody else's is removed.
                with contextlib.suppress(OSError):
                    os.remove(path)


@contextlib.contextmanager
def _made(folder):
    """Removes in the end what is empty of a folder that was missing."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in missing:
                os.rmdir(folder)


def _taken(path, what):
    """Returns the file of a lock, open, and whether it is locked."""
    attempts = 100
    while True:
        with errors_explained(what, "a place that can be written"):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                file = open(path, "a+")  # noqa: SIM115, it stays open
            except FileNotFoundError:
                attempts -= 1
                if not attempts:  # as where a link leads nowhere
                    raise
                continue  # another has removed the folder meanwhile
        try:
            is_locked = _lock(file, what)
            if is_locked and not _is_at(file, path):  # another has removed it
                file.close()
                continue
            with errors_explained(what, "a place that can be written"):
                _sign(file)
            return file, is_locked
        except BaseException:
            file.close()
            raise


def _lock(file, what):
    """Locks a file, and returns whether that is possible."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            "Expected a place that no other process writes to. "
            f"Received: '{what}', {_holder(file)}"
        ) from None
    except (ImportError, OSError) as error:  # Windows has no such module
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"'{what}' is on a file system without locks, which does not "
            f"keep a second process from writing there: {error}",
            stacklevel=2,
        )
        return False
    return True


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(file):
    """Writes who holds a lock."""
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.truncate(0)
    json.dump(
        {"process": os.getpid(), "machine": platform.node(), "since": since}, file
    )
    file.flush()


def _holder(file):
    """Returns in words who holds a lock."""
    for _ in range(10):
        file.seek(0)
        try:
            holder = json.load(file)
            return (
                f"where process {holder['process']} on '{holder['machine']}' has "
                f"written since {holder['since']}"
            )
        except (ValueError, KeyError, TypeError):  # it was taken just now
            time.sleep(0.01)
    return "where another process writes"
