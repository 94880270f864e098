"""What `load` and `image_folder` check before any work starts."""

import contextlib
import numbers
import urllib.error
import urllib.request
from collections.abc import Sequence


def check_integer(name: str, value: int, minimum: int) -> None:
    """Raises a ValueError unless an argument is an integer that is large enough."""
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
