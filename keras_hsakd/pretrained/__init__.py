"""Trained networks that come with the package: weights and a card each, as files."""

import pathlib

from keras_hsakd.files import read_json
from keras_hsakd.suggestions import did_you_mean

FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """Returns the names of the networks.

    Example:
    >>> all(path("resnet20").parent == FOLDER for name in names())
    True
    """
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def path(name: str) -> pathlib.Path:
    """Returns the file of a network's weights: arrays of half precision by name.

    Args:
        name: Of the network.

    Example:
    >>> path("resnet20-cifar10").name
    'resnet20-cifar10.npz'
    """
    return FOLDER / f"{name}.npz"


def card(name: str) -> dict:
    """Returns what is known of a network.

    Args:
        name: One of `names()`.

    Returns:
        A dict: `data`, `command`, `seed`, `accuracy` (of the weights as they are here,
        on each set of test images), `licence`, `digest` of the weights, `heads`,
        `preprocessing` and `record`, the `run.json` of its training.

    Raises:
        ValueError: If there is no such network.

    Example:
    >>> card("resnet20-cifar10")["licence"]  # doctest: +SKIP
    'Apache-2.0'
    """
    if name not in names():
        raise ValueError(
            "Expected the name of a network that comes with the package, one of "
            f"{names()}. Received: '{name}'{did_you_mean(name, names())}"
        )
    return read_json(FOLDER / f"{name}.json")
