"""What the networks of the zoo cost, told without making them.

Making them all takes most of a minute, and Keras seconds to import. `make zoo` counts
in the networks themselves, and writes `zoo.json`.
"""

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from keras_hsakd.sizes import ImageSize, edges


class Cost(NamedTuple):
    """What a network costs, for any number of classes and images of any size.

    Attributes:
        image_size: Height and width of the images that it is made for.
        heads: Number of its auxiliary heads.
        parameters: Trained parameters of the network that is deployed: those there are
            without a class, and those of each class.
        with_heads: The same with auxiliary heads, for four views.
        multiply_adds: Those of convolutions for each pixel of their output, by how
            often the image was halved before.
    """

    image_size: int
    heads: int
    parameters: Sequence[int]
    with_heads: Sequence[int]
    multiply_adds: Sequence[int]


def table(image_size: ImageSize | None = None, num_classes: int = 100) -> str:
    """Returns what the networks cost, as a Markdown table.

    Args:
        image_size: Int, height and width of an image, or (height, width). Defaults to
            what each is made for.
        num_classes: Number of classes `N >= 2`. Defaults to 100.

    Returns:
        A string with a line for each of `keras_hsakd.models.names()`: trained
        parameters (without the statistics of batch normalization, as in the paper) and
        multiply-adds of the network that is deployed, number of heads, trained
        parameters with heads.

    Raises:
        ValueError: If there are fewer than two classes, or a network halves images of
            that size to nothing.

    Example:
    >>> print(table().splitlines()[4])
    | wrn_16_2 | 703,284 | 101,118,464 | 3 | 2,631,588 |
    """
    if num_classes < 2:
        raise ValueError(
            "Expected `num_classes` to be at least 2. "
            f"Received: num_classes={num_classes}"
        )
    lines = [
        "| network | trained parameters | multiply-adds | heads | with heads |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, cost in COSTS.items():
        deployed, with_heads = (
            fixed + num_classes * of_a_class
            for fixed, of_a_class in (cost.parameters, cost.with_heads)
        )
        multiplied = multiply_adds(name, image_size, num_classes)
        cells = (deployed, multiplied, cost.heads, with_heads)
        lines.append(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return "\n".join(lines)


def multiply_adds(
    name: str, image_size: ImageSize | None = None, num_classes: int = 100
) -> int:
    """Returns the multiply-adds of one image through a network without heads.

    Args:
        name: One of `keras_hsakd.models.names()`.
        image_size: As in `table`.
        num_classes: As in `table`.

    Returns:
        The number, as `keras_hsakd.models.multiply_adds` counts it.

    Raises:
        ValueError: If the network halves images of that size to nothing.

    Example:
    >>> multiply_adds("wrn_16_2")
    101118464
    """
    cost = COSTS[name]
    height, width = edges(cost.image_size if image_size is None else image_size)
    # A pooling of VGG drops a last odd row; a convolution with stride 2 keeps it.
    pools = name.startswith("vgg")
    total = (cost.parameters[1] - 1) * num_classes  # all but the bias
    for of_a_pixel in cost.multiply_adds:
        if min(height, width) < 1:
            smallest = 2 ** (len(cost.multiply_adds) - 1) if pools else 1
            raise ValueError(
                f"Expected `image_size` to be at least {smallest} for {name}. "
                f"Received: image_size={image_size}"
            )
        total += of_a_pixel * height * width
        height, width = (
            side // 2 if pools else (side + 1) // 2 for side in (height, width)
        )
    return total


with open(os.path.join(os.path.dirname(__file__), "zoo.json")) as _file:
    COSTS = {name: Cost(**row) for name, row in json.load(_file).items()}
