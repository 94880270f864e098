"""What the networks of the zoo cost, told without making them.

Making them all takes most of a minute, and Keras seconds to import. The rows are what
`tests/test_models.py` counts in the networks themselves.
"""

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
    parameters: tuple[int, int]
    with_heads: tuple[int, int]
    multiply_adds: tuple[int, ...]


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


COSTS = {
    "wrn_10_1": Cost(32, 3, (77200, 65), (281072, 845), (5040, 14336, 57344)),
    "wrn_16_1": Cost(32, 3, (174416, 65), (618800, 845), (9648, 32768, 131072)),
    "wrn_16_2": Cost(32, 3, (690384, 129), (2463888, 1677), (33200, 131072, 524288)),
    "wrn_40_1": Cost(32, 3, (563280, 65), (1969712, 845), (28080, 106496, 425984)),
    "wrn_40_2": Cost(32, 3, (2242256, 129), (7856784, 1677), (106928, 425984, 1703936)),
    "resnet8": Cost(32, 3, (77392, 65), (281360, 845), (5040, 14336, 57344)),
    "resnet14": Cost(32, 3, (174608, 65), (619088, 845), (9648, 32768, 131072)),
    "resnet20": Cost(32, 3, (271824, 65), (956816, 845), (14256, 51200, 204800)),
    "resnet32": Cost(32, 3, (466256, 65), (1632272, 845), (23472, 88064, 352256)),
    "resnet44": Cost(32, 3, (660688, 65), (2307728, 845), (32688, 124928, 499712)),
    "resnet56": Cost(32, 3, (855120, 65), (2983184, 845), (41904, 161792, 647168)),
    "resnet110": Cost(32, 3, (1730064, 65), (6022736, 845), (83376, 327680, 1310720)),
    "resnet8x4": Cost(32, 3, (1207840, 257), (4456736, 3341), (58208, 229376, 917504)),
    "resnet32x4": Cost(
        32, 3, (7408160, 257), (26006816, 3341), (353120, 1409024, 5636096)
    ),
    "resnet50": Cost(
        32, 4, (23500352, 2049), (97198656, 34833), (247488, 1310720, 7471104, 14417920)
    ),
    "resnet101": Cost(
        32,
        4,
        (42492480, 2049),
        (154175040, 34833),
        (247488, 1310720, 26411008, 14417920),
    ),
    "resnet152": Cost(
        32,
        4,
        (58136128, 2049),
        (199985728, 34833),
        (247488, 2424832, 40894464, 14417920),
    ),
    "resnet18_imagenet": Cost(
        224,
        4,
        (11176512, 513),
        (50523968, 8721),
        (0, 9408, 147456, 524288, 2097152, 8388608),
    ),
    "resnet34_imagenet": Cost(
        224,
        4,
        (21284672, 513),
        (89550912, 8721),
        (0, 9408, 221184, 1114112, 6815744, 13107200),
    ),
    "resnet50_imagenet": Cost(
        224,
        4,
        (23508032, 2049),
        (97206336, 34833),
        (0, 9408, 245760, 1310720, 7471104, 14417920),
    ),
    "vgg8_bn": Cost(
        32, 4, (3913728, 513), (19926912, 8721), (1728, 73728, 294912, 3538944)
    ),
    "vgg11_bn": Cost(
        32, 4, (9225984, 513), (45307008, 8721), (1728, 73728, 884736, 8257536)
    ),
    "vgg13_bn": Cost(
        32, 4, (9410880, 513), (45639744, 8721), (38592, 221184, 884736, 8257536)
    ),
    "vgg16_bn": Cost(
        32, 4, (14723136, 513), (71019840, 8721), (38592, 221184, 1474560, 12976128)
    ),
    "vgg19_bn": Cost(
        32, 4, (20035392, 513), (96399936, 8721), (38592, 221184, 2064384, 17694720)
    ),
    "mobilenet_v2": Cost(
        32, 4, (684736, 1281), (3306632, 21777), (5592, 11208, 137376, 512192)
    ),
    "shufflenet_v1": Cost(
        32, 3, (853158, 961), (2818698, 12493), (1368, 39594, 300900, 487560)
    ),
    "shufflenet_v2_x0_3": Cost(
        32, 3, (184288, 513), (669640, 6669), (552, 5816, 35240, 136720)
    ),
    "shufflenet_v2_x0_5": Cost(
        32, 3, (341216, 1025), (1272080, 13325), (648, 7992, 49968, 274656)
    ),
    "shufflenet_v2": Cost(
        32, 3, (1253028, 1025), (4543016, 13325), (1464, 40700, 278516, 916168)
    ),
    "shufflenet_v2_x1_5": Cost(
        32, 3, (2478048, 1025), (8871056, 13325), (2184, 90680, 633776, 1727968)
    ),
    "shufflenet_v2_x2": Cost(
        32, 3, (5316960, 2049), (19378792, 26637), (2760, 149400, 1205424, 3925960)
    ),
    "mlperf_resnet8": Cost(32, 3, (77536, 65), (281792, 845), (5040, 14336, 57344)),
    "mlperf_resnet8_26": Cost(
        32, 3, (203476, 105), (741312, 1365), (12870, 37856, 151424)
    ),
    "mlperf_resnet8_40": Cost(
        32, 3, (479920, 161), (1750880, 2093), (29880, 89600, 358400)
    ),
}
