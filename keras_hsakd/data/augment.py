"""Random augmentation of batches, as pure functions of a stateless seed."""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf


def random_crop(images: tf.Tensor, padding: int, seed: tf.Tensor) -> tf.Tensor:
    """Pads images with zeros and crops each at a random place, back to its size.

    Every image of the batch has its own offset, uniform over all the windows of the
    padded image.

    Args:
        images: Tensor of shape `(batch, height, width, channels)` and any dtype, with
            static height and width.
        padding: Int, number of zero pixels added at each of the four sides.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        A tensor of the shape and dtype of `images`.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3))
    >>> random_crop(images, padding=4, seed=(0, 1)).shape
    TensorShape([8, 32, 32, 3])
    """
    _, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = tf.random.stateless_uniform(
        [2, tf.shape(images)[0], 1], seed, 0, 2 * padding + 1, tf.int32
    )
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    strips = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(strips, columns, axis=2, batch_dims=1)


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability one half.

    Args:
        images: Tensor of shape `(batch, height, width, channels)` and any dtype.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        A tensor of the shape and dtype of `images`.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3))
    >>> random_flip(images, seed=(0, 1)).shape
    TensorShape([8, 32, 32, 3])
    """
    coins = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed)
    return tf.where(coins < 0.5, tf.reverse(images, axis=[2]), images)


def random_resized_crop(
    image: tf.Tensor, image_size: int, seed: tf.Tensor
) -> tf.Tensor:
    """Crops a random part of an image and resizes it, as for ImageNet.

    The part has 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, where ten
    draws find one in the image; else it is the whole image.

    Args:
        image: Tensor of shape `(height, width, channels)`.
        image_size: Int, height and width of the result.
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.

    Returns:
        A float32 tensor of shape `(image_size, image_size, channels)`.

    Example:
    >>> random_resized_crop(tf.zeros((50, 40, 3)), 32, seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference: [Szegedy et al., 2015](https://arxiv.org/abs/1409.4842), section 6;
    torchvision's `RandomResizedCrop`.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((0, 0, 4), tf.float32),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return _resized(tf.slice(image, begin, size), image_size)


def center_crop(image: tf.Tensor, image_size: int, fraction: float) -> tf.Tensor:
    """Crops a square from the centre of an image and resizes it.

    Args:
        image: Tensor of shape `(height, width, channels)`.
        image_size: Int, height and width of the result.
        fraction: Float from 0 to 1, the part of the image's shorter side that is kept:
            224 / 256 for ImageNet.

    Returns:
        A float32 tensor of shape `(image_size, image_size, channels)`.

    Example:
    >>> center_crop(tf.zeros((50, 40, 3)), 32, fraction=1.0).shape
    TensorShape([32, 32, 3])
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.cast(tf.minimum(height, width), tf.float32) * fraction
    side = tf.cast(tf.round(side), tf.int32)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(image[top : top + side, left : left + side], image_size)


def _resized(image, image_size):
    channels = image.shape[-1]
    image = tf.image.resize(image, (image_size, image_size), antialias=True)
    return tf.ensure_shape(image, (image_size, image_size, channels))


def rand_augment(
    images: tf.Tensor, seed: tf.Tensor, num_transformations: int = 2
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
        seed: Integer tensor of shape `(2,)`; the result is a function of it alone.
        num_transformations: Int, the number applied to each image. Defaults to 2.

    Returns:
        A float32 tensor of the shape of `images`, values from 0 to 255.

    Example:
    >>> images = tf.random.uniform((8, 32, 32, 3), maxval=255)
    >>> rand_augment(images, seed=(0, 1)).shape
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
        (images, tf.random.split(seed, tf.shape(images)[0])),
        fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
    )


AUGMENTATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "rand_augment": rand_augment,
}


CROPS = ("padded", "resized")


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
