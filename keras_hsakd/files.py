"""Files that are there whole or not at all."""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator

_PARTIAL = ".partial-"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[str]:
    """Yields a temporary path whose file takes the place of `path` at the end.

    The file is on disk before it gets its name. After an error or an interruption in
    the block, what was at `path` is still there.

    Args:
        path: Path of the file to write, in a folder that exists.

    Yields:
        A path in the same folder with the same suffix.

    Example:
    >>> with atomic_write("labels.txt") as temporary:
    ...     with open(temporary, "w") as file:
    ...         _ = file.write("cat")
    >>> open("labels.txt").read()
    'cat'
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f"{_PARTIAL}{os.getpid()}-{name}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except OSError as error:
        if error.errno is not None and error.filename in (None, temporary):
            error.filename = os.fspath(path)  # which people know
        raise
    finally:
        with contextlib.suppress(OSError):  # it hides no other error
            os.remove(temporary)


def sync_folder(folder: str | os.PathLike) -> None:
    """Returns when the names of the files in a folder are on disk, too.

    Args:
        folder: The folder.

    Example:
    >>> sync_folder(".")
    """
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check_parent(path: str | os.PathLike, argument: str) -> None:
    """Raises an error unless a file can be made where there is a folder for it.

    Args:
        path: Path of the file.
        argument: What the user called it.

    Raises:
        FileNotFoundError: If there is no such folder.

    Example:
    >>> check_parent("plan.json", "output")
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise FileNotFoundError(
            f"Expected `{argument}` to be a file in a folder that exists. "
            f"Received: '{os.fspath(path)}'"
        )


def remove_partial(folder: str | os.PathLike, name: str | None = None) -> None:
    """Removes what `atomic_write` had begun in processes that were killed.

    Args:
        folder: The folder.
        name: Name of the file in it that no other process writes. Defaults to `None`,
            all of them.

    Example:
    >>> open(".partial-1-labels.txt", "w").close()
    >>> remove_partial(".")
    >>> os.path.exists(".partial-1-labels.txt")
    False
    """
    of_one = re.escape(_PARTIAL) + r"\d+-" + re.escape(name or "")
    for found in os.listdir(folder):
        if found.startswith(_PARTIAL) and (name is None or re.fullmatch(of_one, found)):
            remove(os.path.join(folder, found))


def remove(path: str | os.PathLike) -> None:
    """Removes a file, or a folder with what is in it; or nothing, if nothing is there.

    Args:
        path: The path.

    Example:
    >>> os.makedirs("old/log")
    >>> remove("old")
    >>> os.path.exists("old")
    False
    """
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def is_unused(folder: str | os.PathLike, *ignored: str) -> bool:
    """Returns whether a folder is missing, or has nothing but what was half written.

    Args:
        folder: The folder.
        *ignored: Names of files that do not count either.

    Example:
    >>> open(".partial-1-labels.txt", "w").close()
    >>> is_unused(".")
    True
    """
    if not os.path.isdir(folder):
        return not os.path.lexists(folder)
    names = set(os.listdir(folder)) - set(ignored)
    return all(name.startswith(_PARTIAL) for name in names)


@contextlib.contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Reports an error in the block on standard error, in place of raising it.

    For what is written on the way out, when another error may be under way.

    Args:
        what: What is missing then.

    Example:
    >>> with best_effort("picture"):
    ...     raise OSError("no space")
    """
    try:
        yield
    except Exception as error:
        print(f"keras-hsakd: no {what}: {error}", file=sys.stderr)


@contextlib.contextmanager
def errors_explained(
    folder: str | os.PathLike, expected: str, hint: str = ""
) -> Iterator[None]:
    """Adds to an OSError in the block what was expected of a folder.

    Args:
        folder: The folder.
        expected: What was expected.
        hint: What to add at the end.

    Example:
    >>> with errors_explained("runs", "a folder that can be written"):
    ...     pass
    """
    try:
        yield
    except OSError as error:
        message = f"Expected {expected}. Received: {error.strerror}{hint}"
        raise type(error)(error.errno, message, folder) from error


def without_folders(text: str) -> str:
    """Returns an absolute path without the folders above it, and other text as it is.

    They tell of a machine and its user, which is nobody else's business.

    Args:
        text: A path, or a name.

    Example:
    >>> without_folders("/home/me/photos"), without_folders("cifar10")
    ('photos', 'cifar10')
    """
    return os.path.basename(os.path.normpath(text)) if os.path.isabs(text) else text


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes JSON, whole.

    Args:
        path: Path of the file.
        content: What to write.

    Example:
    >>> write_json("run.json", {"seed": 0})
    >>> read_json("run.json")
    {'seed': 0}
    """
    with atomic_write(path) as temporary, open(temporary, "w") as file:
        json.dump(content, file, indent=2)


def as_json(content):
    """Returns content as `read_json` reads it after `write_json`: without tuples.

    Args:
        content: Values that JSON has a place for.

    Example:
    >>> as_json({"sizes": (1, 2)})
    {'sizes': [1, 2]}
    """
    return json.loads(json.dumps(content))


def read_json(path: str | os.PathLike) -> dict:
    """Reads an object from a JSON file.

    Args:
        path: Path of the file.

    Returns:
        Its content.

    Raises:
        ValueError: If it is not a JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # also what is no text
        raise ValueError(
            f"Expected '{path}' to be a JSON file. Received: {error}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected '{path}' to hold a JSON object. "
            f"Received: a {type(content).__name__}"
        )
    return content
