"""Random augmentation: pure functions of what is drawn for each image."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hsakd.data.sources import resize_one
from keras_hsakd.sizes import ImageSize, edges

CROPS = ("padded", "resized")


class Draws(NamedTuple):
    """What is drawn for each image, whatever batch it comes in.

    Attributes:
        uniform: Float32 tensor of shape `(images, 3)`, from 0 to 1: two for the place
            of a crop, one for a flip.
        seeds: Int32 tensor of shape `(images, 2, 2)`: two seeds, for
            `random_resized_crop` and for a stronger augmentation.
    """

    uniform: tf.Tensor
    seeds: tf.Tensor

    def at(self, indices: tf.Tensor) -> "Draws":
        """Returns what is drawn for the images at indices."""
        return Draws(*(tf.gather(table, indices) for table in self))


def draw(num_images: int, seed: tf.Tensor) -> Draws:
    """Draws for all the images of an epoch at once.

    Args:
        num_images: Int.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        The `Draws` of images 0 to `num_images - 1`.

    Example:
    >>> draw(50, seed=(0, 1)).at(tf.constant([3, 7])).uniform.shape
    TensorShape([2, 3])
    """
    first, second = tf.unstack(tf.random.split(seed, 2))
    return Draws(
        tf.random.stateless_uniform([num_images, 3], first),
        tf.random.stateless_uniform([num_images, 2, 2], second, None, None, tf.int32),
    )


def random_crop(
    images: tf.Tensor,
    draws: Draws,
    padding: int | tuple[int, int],
    flip: bool = False,
) -> tf.Tensor:
    """Pads images with zeros and crops each at a random place, back to its size.

    Each place of the crop in the padded image is as likely as the others.

    Args:
        images: Tensor of shape `(batch, height, width, channels)` and any dtype, with
            static height and width.
        draws: `Draws` of these images.
        padding: Int, number of zero pixels added at each of the four sides, or two: of
            rows above and below, of columns left and right.
        flip: Bool, whether every second image, at random, is mirrored from left to
            right afterwards. Defaults to `False`.

    Returns:
        A tensor of the shape and dtype of `images`.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3))
    >>> random_crop(images, draw(8, seed=(0, 1)), padding=4, flip=True).shape
    TensorShape([8, 32, 32, 3])
    """
    _, height, width, _ = images.shape
    first_rows, first_columns = tf.unstack(_places(draws, padding), axis=1)
    rows = first_rows[:, tf.newaxis] + tf.range(height)
    columns = first_columns[:, tf.newaxis] + tf.range(width)
    if flip:
        flipped = _flipped(draws)[:, tf.newaxis]
        columns = tf.where(flipped, tf.reverse(columns, axis=[1]), columns)
    rows_added, columns_added = ([added] * 2 for added in edges(padding))
    padded = tf.pad(images, [[0, 0], rows_added, columns_added, [0, 0]])
    strips = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(strips, columns, axis=2, batch_dims=1)


def random_crop_of_one(
    image: tf.Tensor,
    draws: Draws,
    padding: int | tuple[int, int],
    flip: bool = False,
) -> tf.Tensor:
    """Crops as `random_crop`, one image: slices are copied faster than gathered.

    Args:
        image: Tensor of shape `(height, width, channels)` and any dtype, with static
            height and width.
        draws: `Draws` of this image, without the first dimension.
        padding: As in `random_crop`.
        flip: As in `random_crop`.

    Returns:
        A tensor of the shape and dtype of `image`.

    Example:
    >>> image = tf.random.uniform((32, 32, 3))
    >>> random_crop_of_one(image, draw(8, seed=(0, 1)).at(5), padding=4).shape
    TensorShape([32, 32, 3])
    """
    row, column = tf.unstack(_places(draws, padding))
    height, width, _ = image.shape
    rows_added, columns_added = ([added] * 2 for added in edges(padding))
    padded = tf.pad(image, [rows_added, columns_added, [0, 0]])
    cropped = padded[row : row + height, column : column + width]
    if flip:
        cropped = tf.cond(
            _flipped(draws), lambda: tf.reverse(cropped, axis=[1]), lambda: cropped
        )
    return tf.ensure_shape(cropped, image.shape)


def _places(draws, padding):
    """Returns the first row and column of a crop of a padded image."""
    counts = [2.0 * added + 1 for added in edges(padding)]
    places = tf.floor(draws.uniform[..., :2] * counts)
    return tf.cast(places, tf.int32)


def _flipped(draws):
    return draws.uniform[..., 2] < 0.5


def random_resized_crop(
    image: tf.Tensor, image_size: ImageSize, seed: tf.Tensor
) -> tf.Tensor:
    """Crops a random part of an image and resizes it, as for ImageNet.

    The part has 8 to 100 % of the area and 3/4 to 4/3 of the aspect ratio of the
    result, where ten draws find one in the image; else it is the whole image.

    Args:
        image: Tensor of shape `(height, width, channels)`.
        image_size: Int, height and width of the result, or (height, width).
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        A float32 tensor of shape `(height, width, channels)`.

    Example:
    >>> random_resized_crop(tf.zeros((50, 40, 3)), 32, seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference: [Szegedy et al., 2015](https://arxiv.org/abs/1409.4842), section 6;
    torchvision's `RandomResizedCrop`.
    """
    height, width = edges(image_size)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((0, 0, 4), tf.float32),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4 * (width / height), 4 / 3 * (width / height)),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return _resized(tf.slice(image, begin, size), image_size)


def center_crop(image: tf.Tensor, image_size: ImageSize, fraction: float) -> tf.Tensor:
    """Crops a part of the result's shape from the centre of an image and resizes it.

    Args:
        image: Tensor of shape `(height, width, channels)`.
        image_size: Int, height and width of the result, or (height, width).
        fraction: Float from 0 to 1, how much is kept of each side of the largest part
            of that shape, for a square of the image's shorter side: 224 / 256 for
            ImageNet.

    Returns:
        A float32 tensor of shape `(height, width, channels)`.

    Example:
    >>> center_crop(tf.zeros((50, 40, 3)), (24, 32), fraction=1.0).shape
    TensorShape([24, 32, 3])
    """
    new_height, new_width = edges(image_size)
    size = tf.shape(image)[:2]
    height, width = tf.unstack(tf.cast(size, tf.float32))
    largest = tf.stack(
        [
            tf.minimum(height, width * (new_height / new_width)),
            tf.minimum(width, height * (new_width / new_height)),
        ]
    )
    kept = tf.maximum(tf.cast(tf.round(largest * fraction), tf.int32), 1)
    top, left = tf.unstack((size - kept) // 2)
    rows, columns = tf.unstack(kept)
    return _resized(image[top : top + rows, left : left + columns], image_size)


def _resized(image, image_size):
    channels = image.shape[-1]
    image = tf.image.resize(image, edges(image_size), antialias=True)
    return tf.ensure_shape(image, (*edges(image_size), channels))


def rand_augment(
    images: tf.Tensor, seeds: tf.Tensor, num_transformations: int = 2
) -> tf.Tensor:
    """Applies random transformations to each image, in the way of RandAugment.

    Each image goes through `num_transformations` of these, each chosen and scaled at
    random: shear and translation along an axis, rotation by at most 20 degrees,
    brightness, contrast, color, sharpness, posterization, solarization, automatic
    contrast, equalization. They are the layers of Keras, driven by stateless seeds:
    `keras.layers.RandAugment` itself, and that of keras-cv, keep a random state, so
    that an interrupted training could not go on with the same images.

    No rotation comes near the 90 degrees that the auxiliary heads tell apart. MixUp and
    CutMix are not offered: a blend of two views of different rotations has no joint
    label of class and rotation, and a blend made before the rotations is an image
    unlike those that the teacher was trained on. The trainers take class probabilities
    `(B, N)` as labels, for who wants to blend before them.

    Args:
        images: Tensor of shape `(batch, height, width, 3)`, values from 0 to 255.
        seeds: Integer tensor of shape `(batch, 2)`; what becomes of an image is a
            function of its seed alone.
        num_transformations: Int, the number applied to each image. Defaults to 2.

    Returns:
        A float32 tensor of the shape of `images`, values from 0 to 255.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3), maxval=255)
    >>> rand_augment(images, draw(8, seed=(0, 1)).seeds[:, 1]).shape
    TensorShape([8, 32, 32, 3])

    Reference: [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719).
    """
    transformations = _transformations()

    def augment_one(arguments):
        image, seed = arguments
        for _ in range(num_transformations):
            seed, choice_seed, own_seed = tf.unstack(tf.random.split(seed, 3))
            choice = tf.random.stateless_uniform(
                (), choice_seed, 0, len(transformations), tf.int32
            )
            image = tf.switch_case(
                choice,
                [
                    functools.partial(_transformed, layer, image, own_seed)
                    for layer in transformations
                ],
            )
        return image

    images = tf.cast(images, tf.float32)
    return tf.map_fn(
        augment_one,
        (images, seeds),
        fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
    )


AUGMENTATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "rand_augment": rand_augment,
}


class Augmentation(NamedTuple):
    """How training images are varied, each by what was drawn for it.

    Attributes:
        crop: `"padded"` pads images by an eighth of their size, 4 pixels for 32, and
            crops them at random; `"resized"` applies `random_resized_crop`.
        flip: Bool, whether every second image, at random, is mirrored.
        augment: Stronger augmentation after that, a name of `AUGMENTATIONS`, or `None`.
    """

    crop: str = "padded"
    flip: bool = True
    augment: str | None = None

    def check(self) -> None:
        """Raises a ValueError unless `crop` and `augment` are known."""
        if self.crop not in CROPS:
            raise ValueError(
                f"Expected `crop` to be one of {CROPS}. Received: crop={self.crop!r}"
            )
        if self.augment is not None and self.augment not in AUGMENTATIONS:
            raise ValueError(
                "Expected `augment` to be None or one of "
                f"{list(AUGMENTATIONS)}. Received: augment={self.augment!r}"
            )

    @property
    def is_of_batches(self) -> bool:
        """Whether it can be applied to whole images of one size, by the batch."""
        return self.crop == "padded"

    @property
    def is_shift(self) -> bool:
        """Whether it does no more than `keras_hsakd.ops.shifted`."""
        return self.is_of_batches and self.augment is None

    def shifts(self, draws: Draws, image_size: ImageSize) -> tf.Tensor:
        """Returns how images are shifted, for `keras_hsakd.ops.shifted`.

        Args:
            draws: `Draws` of the images.
            image_size: Int, height and width of an image, or (height, width).

        Returns:
            int32 tensor of shape `(batch, 3)`.
        """
        padding = _padding(image_size)
        flipped = tf.logical_and(_flipped(draws), self.flip)
        places = _places(draws, padding) - padding
        return tf.concat([places, tf.cast(flipped, tf.int32)[:, tf.newaxis]], axis=1)

    def of_images(self, images: tf.Tensor, draws: Draws) -> tf.Tensor:
        """Returns a batch of images augmented, where `is_of_batches`.

        Args:
            images: Tensor of shape `(batch, height, width, 3)`, values from 0 to 255:
                the zeros of the padding are to be black.
            draws: `Draws` of these images.
        """
        padding = _padding(images.shape[1:3])
        images = random_crop(images, draws, padding, self.flip)
        if self.augment is not None:
            images = AUGMENTATIONS[self.augment](images, draws.seeds[:, 1])
        return images

    def of_image(
        self, image: tf.Tensor, draws: Draws, image_size: ImageSize
    ) -> tf.Tensor:
        """Returns an image of any size augmented, as `of_images` does.

        Args:
            image: Tensor of shape `(height, width, 3)`, values from 0 to 255.
            draws: `Draws` of this image.
            image_size: Int, height and width of the result, which is float32, or
                (height, width).
        """
        if self.crop == "padded":
            padding = _padding(image_size)
            image = resize_one(image, image_size)
        else:
            padding = (0, 0)
            image = random_resized_crop(image, image_size, draws.seeds[0])
        if any(padding) or self.flip:
            image = random_crop_of_one(image, draws, padding, self.flip)
        if self.augment is not None:
            augment = AUGMENTATIONS[self.augment]
            image = augment(image[tf.newaxis], draws.seeds[1:])[0]
        return image


def _padding(image_size):
    """Returns the zeros beside each side of an image that is cropped: 4 for 32."""
    height, width = edges(image_size)
    return height // 8, width // 8


@functools.cache
def _transformations():
    layers = keras.layers
    spatial = {"fill_mode": "constant", "dtype": "float32"}
    made = [
        layers.RandomShear(x_factor=0.3, **spatial),
        layers.RandomShear(y_factor=0.3, **spatial),
        layers.RandomTranslation(0.0, 0.2, **spatial),
        layers.RandomTranslation(0.2, 0.0, **spatial),
        layers.RandomRotation(20 / 360, **spatial),
        layers.RandomBrightness(0.3, dtype="float32"),
        layers.RandomContrast(0.5, dtype="float32"),
        layers.RandomColorDegeneration(0.5, dtype="float32"),
        layers.RandomSharpness(1.0, dtype="float32"),
        layers.RandomPosterization((4, 8), dtype="float32"),
        layers.Solarization(threshold_factor=1.0, dtype="float32"),
        layers.AutoContrast(dtype="float32"),
        layers.Equalization(dtype="float32"),
    ]
    for layer in made:
        layer.backend.set_backend("tensorflow")  # `tf.data` runs it, on any backend
    return made


class _StatelessSeeds(keras.random.SeedGenerator):
    """Draws seeds from a stateless one, where layers expect a generator of them."""

    def __init__(self, seed):
        self._seed = seed

    def next(self, ordered=True):
        self._seed, drawn = tf.unstack(tf.random.split(self._seed))
        return drawn


def _transformed(layer, image, seed):
    images = image[tf.newaxis]
    drawn = layer.get_random_transformation(
        images, training=True, seed=_StatelessSeeds(seed)
    )
    images = layer.transform_images(images, drawn, training=True)
    return tf.ensure_shape(images[0], image.shape)
