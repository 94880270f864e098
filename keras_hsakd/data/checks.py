"""What `load` and `image_folder` check before any work starts."""

import contextlib
import numbers
import urllib.error
import urllib.request
from collections.abc import Sequence

from keras_hsakd.data.augment import AUGMENTATIONS, CROPS
from keras_hsakd.sizes import ImageSize, checked


def check_arguments(
    batch_size: int,
    image_size: ImageSize,
    seed: int,
    examples_per_class: int | None,
    label_fraction: float | None,
    limit: int | None,
    augment: str | None,
    crop: str,
    center_crop: float | None,
) -> None:
    """Raises a ValueError unless these are values that `load` takes."""
    _check_integer("batch_size", batch_size, 1)
    checked(image_size)
    _check_integer("seed", seed, 0)
    for name, value in (("examples_per_class", examples_per_class), ("limit", limit)):
        if value is not None:
            _check_integer(name, value, 1)
    if label_fraction is not None and not 0 < label_fraction <= 1:
        raise ValueError(
            "Expected `label_fraction` to be above 0 and at most 1. "
            f"Received: label_fraction={label_fraction}"
        )
    if label_fraction is not None and examples_per_class is not None:
        raise ValueError(
            "Expected one of `label_fraction` and `examples_per_class`. Received: "
            f"{label_fraction=}, {examples_per_class=}"
        )
    if crop not in CROPS:
        raise ValueError(
            f"Expected `crop` to be one of {CROPS}. Received: crop={crop!r}"
        )
    if center_crop is not None and not 0 < center_crop <= 1:
        raise ValueError(
            "Expected `center_crop` to be None or above 0 and at most 1. "
            f"Received: center_crop={center_crop}"
        )
    if augment is not None and augment not in AUGMENTATIONS:
        raise ValueError(
            f"Expected `augment` to be None or one of {list(AUGMENTATIONS)}. "
            f"Received: augment={augment!r}"
        )


def _check_integer(name, value, minimum):
    if not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(
            f"Expected `{name}` to be an integer >= {minimum}. "
            f"Received: {name}={value!r}"
        )


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises a ValueError unless these are a mean and a deviation per channel."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(
                f"Expected `{name}` to have 3 values, one per channel. "
                f"Received: {name}={values!r}"
            )
    if min(std) <= 0:
        raise ValueError(f"Expected `std` to be > 0. Received: std={std!r}")


def check_class_names(names: Sequence[str], place: str) -> None:
    """Raises a ValueError unless names are of one line each, as files list them."""
    broken = [name for name in names if name.splitlines() != [name]]
    if broken:
        raise ValueError(
            f"Expected the names of the classes of '{place}' to be of one line each. "
            f"Received: {broken[:5]}"
        )


def check_answer(url: str) -> None:
    """Raises an OSError unless there is a server that answers for an address."""
    # It respects the proxies of the environment, as tensorflow-datasets does.
    request = urllib.request.Request(url, method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError):  # there is an answer
        urllib.request.urlopen(request, timeout=10).close()
