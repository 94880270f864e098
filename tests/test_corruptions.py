"""Corruptions of test images, beside the libraries that CIFAR-10-C was made with."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from keras_hsakd.data.corruptions import corrupted, names

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), "uint8")


def test_noise_is_of_the_severity_and_drawn_by_seed_and_index():
    grey = np.full((4, 32, 32, 3), 128)
    for severity, deviation in ((1, 0.04), (3, 0.08), (5, 0.1)):
        noisy = corrupted(grey, "gaussian_noise", severity)
        assert noisy.std() == pytest.approx(255 * deviation, rel=0.05)
    noisy = corrupted(grey, "gaussian_noise")
    assert (noisy[0] != noisy[1]).any()
    again = corrupted(grey[:2], "gaussian_noise", indices=[3, 1])
    np.testing.assert_array_equal(again, noisy[[3, 1]])
    assert (corrupted(grey, "gaussian_noise", seed=1) != noisy).any()


@pytest.mark.parametrize("severity, sigma", [(1, 0.4), (3, 0.7), (5, 1.0)])
def test_blur_is_scipys(severity, sigma):
    ndimage = pytest.importorskip("scipy.ndimage")
    expected = ndimage.gaussian_filter(
        IMAGES.astype(float), (0, sigma, sigma, 0), mode="nearest"
    )
    received = corrupted(IMAGES, "gaussian_blur", severity)
    np.testing.assert_array_equal(received, np.floor(expected))


def test_contrast_draws_to_the_mean_of_each_channel():
    means = IMAGES.mean(axis=(1, 2), keepdims=True)
    expected = means + 0.4 * (IMAGES - means)
    np.testing.assert_array_equal(corrupted(IMAGES, "contrast"), np.floor(expected))


def test_brightness_is_added_to_the_value_of_hsv():
    images = IMAGES[:, :4, :4].copy()
    images[0, 0, 0] = 0  # black has no hue
    received = corrupted(images, "brightness")
    for pixel, found in zip(
        images.reshape(-1, 3), received.reshape(-1, 3), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        value = min(1, value + 0.15)
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        np.testing.assert_allclose(found, expected, atol=1)
        assert (found <= expected + 1e-3).all()


@pytest.mark.parametrize("size, smaller", [(32, 27), (8, 6)])
def test_pixelate_is_pillows_box_filter(size, smaller):
    images = IMAGES[:, :size, :size]
    expected = [
        np.asarray(
            Image.fromarray(image)
            .resize((smaller, smaller), Image.Resampling.BOX)
            .resize((size, size), Image.Resampling.BOX)
        )
        for image in images
    ]
    received = corrupted(images, "pixelate")
    assert np.abs(received - expected).max() <= 1  # it rounds after each axis
    assert np.abs(received - images).max() > 50


@pytest.mark.parametrize("name", names())
def test_a_corruption_gives_pixels_and_a_higher_severity_more_of_it(name):
    def change(severity):
        received = corrupted(IMAGES, name, severity)
        assert (received.dtype, received.shape) == ("float32", IMAGES.shape)
        np.testing.assert_array_equal(received, received.clip(0, 255).round())
        return np.abs(received - IMAGES).mean()

    assert 0 < change(1) < change(3) < change(5)


@pytest.mark.parametrize("name", names()[1:])
def test_images_need_not_be_square(name):
    images = IMAGES[:, :12, :20]
    turned = corrupted(images.swapaxes(1, 2), name).swapaxes(1, 2)
    assert np.abs(corrupted(images, name) - turned).max() <= 1  # of rounding


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="`name` to be one of .*'fog'"):
        corrupted(IMAGES, "fog")
    with pytest.raises(ValueError, match="`severity` to be from 1 to 5.*severity=6"):
        corrupted(IMAGES, "contrast", severity=6)
