"""Corruptions of test images, as of CIFAR-10-C."""

from collections.abc import Sequence

import numpy as np

_PIXEL = 255.0


def _gaussian_noise(images, amount, generators):
    noise = np.stack([g.normal(size=images.shape[1:]) for g in generators])
    return images + amount * noise


def _gaussian_blur(images, sigma, generators):
    radius = int(4 * sigma + 0.5)  # where SciPy cuts it off
    places = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (places / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (radius, radius)
        padded = np.pad(images, width, mode="edge")
        images = np.lib.stride_tricks.sliding_window_view(
            padded, len(kernel), axis=axis
        )
        images = images @ kernel
    return images


def _contrast(images, part, generators):
    means = images.mean(axis=(1, 2), keepdims=True)
    return means + part * (images - means)


def _brightness(images, amount, generators):
    # The value of HSV alone; hue and saturation stay, and black becomes grey.
    value = images.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    shape = np.divide(images, value, out=np.ones_like(images), where=value > 0)
    return brighter * shape


def _pixelate(images, part, generators):
    sizes = images.shape
    for axis in (1, 2):
        size = sizes[axis]
        smaller = max(1, int(size * part))
        shrink = _boxes(size, smaller)
        images = np.moveaxis(np.moveaxis(images, axis, -1) @ shrink.T, -1, axis)
    images = np.rint(_PIXEL * images) / _PIXEL  # as an image of 8 bits has it
    for axis in (1, 2):
        grow = _boxes(images.shape[axis], sizes[axis])
        images = np.moveaxis(np.moveaxis(images, axis, -1) @ grow.T, -1, axis)
    return images


def _boxes(size, new_size):
    """Returns the matrix of Pillow's box filter: means of whole pixels."""
    scale = size / new_size
    centers = (np.arange(new_size)[:, np.newaxis] + 0.5) * scale
    distances = (np.arange(size) + 0.5 - centers) / max(scale, 1)
    inside = (distances > -0.5) & (distances <= 0.5)
    return inside / inside.sum(axis=1, keepdims=True)


# name: its function of images from 0 to 1, and what it is given, by severity
_NAMED = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}


def names() -> list[str]:
    """Returns the names of the corruptions.

    Example:
    >>> from keras_hsakd.data import corruptions
    >>> corruptions.names()
    ['gaussian_noise', 'gaussian_blur', 'contrast', 'brightness', 'pixelate']
    """
    return list(_NAMED)


def corrupted(
    images: np.ndarray,
    name: str,
    severity: int = 3,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Returns images under a corruption of CIFAR-10-C.

    What it does to an image of 32 x 32 pixels is what the authors' program does, with
    their constants; those are kept for other sizes. What is drawn for an image depends
    on its index and the seed alone.

    Args:
        images: Of 0 to 255, of shape `(B, H, W, C)`.
        name: One of `names()`.
        severity: Int from 1 to 5. Defaults to 3.
        seed: Int, of the noise. Defaults to 0.
        indices: Index of each image. Defaults to 0 to B - 1.

    Returns:
        float32 of whole numbers from 0 to 255, of the same shape.

    Raises:
        ValueError: If there is no such corruption, or no such severity.

    Reference:
        - [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
        - [make_cifar_c.py](https://github.com/hendrycks/robustness)

    Example:
    >>> images = np.array([0, 100, 200, 250]).reshape(1, 2, 2, 1)
    >>> corrupted(images, "brightness").ravel().tolist()
    [38.0, 138.0, 238.0, 255.0]
    """
    if name not in _NAMED:
        raise ValueError(
            f"Expected `name` to be one of {names()}. Received: name={name!r}"
        )
    function, amounts = _NAMED[name]
    if severity not in range(1, len(amounts) + 1):
        raise ValueError(
            f"Expected `severity` to be from 1 to {len(amounts)}. "
            f"Received: severity={severity}"
        )
    if indices is None:
        indices = range(len(images))
    generators = [np.random.default_rng((seed, index)) for index in indices]
    images = np.asarray(images, "float64") / _PIXEL
    images = function(images, amounts[severity - 1], generators)
    # The authors cut off what is behind the point; 1e-6 is what rounding may take.
    return np.floor(_PIXEL * images.clip(0, 1) + 1e-6).astype("float32")
