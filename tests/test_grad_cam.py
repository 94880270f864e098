import keras
import numpy as np
import pytest

from keras_hsakd import strip_heads
from keras_hsakd.grad_cam import grad_cam


def convolved(images, kernel):
    """Returns a convolution of stride 1 with zero padding."""
    edge = kernel.shape[0] // 2
    padded = np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    size = images.shape[1]
    return sum(
        padded[:, i : i + size, j : j + size] @ kernel[i, j]
        for i, j in np.ndindex(kernel.shape[:2])
    )


def reference(images, kernel, first, second, classes):
    """Grad-CAM of convolution, ReLU and two linear layers on all positions.

    The gradients are those of a small step of each value.
    """

    def logits(maps):
        hidden = np.maximum(maps.reshape(len(maps), -1) @ first, 0)
        return hidden @ second

    maps = np.maximum(convolved(images, kernel), 0)
    gradients = np.zeros_like(maps)
    for place in np.ndindex(maps.shape):
        step = np.zeros_like(maps)
        step[place] = 1e-5
        row, column = place[0], classes[place[0]]
        change = logits(maps + step)[row, column] - logits(maps - step)[row, column]
        gradients[place] = change / 2e-5
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    return np.maximum((weights * maps).sum(axis=-1), 0), logits(maps)


@pytest.fixture
def network():
    images = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(5, 3, padding="same", use_bias=False)(images)
    # Unlike after a mean over them, the gradient differs between positions.
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    x = keras.layers.Dense(6, activation="relu", use_bias=False)(x)
    model = keras.Model(images, keras.layers.Dense(3, use_bias=False)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.core
def test_it_is_as_in_numpy(network):
    images = np.random.default_rng(1).normal(size=(3, 4, 4, 3))
    weights = [np.asarray(w, "float64") for w in network.get_weights()]
    for classes in ([0, 1, 2], [2, 2, 0]):
        expected, logits = reference(images, *weights, classes)
        received = grad_cam(network, images, classes)
        assert expected.max() > 0.1
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-6)
    likeliest = logits.argmax(axis=1)
    np.testing.assert_allclose(
        grad_cam(network, images), reference(images, *weights, likeliest)[0], rtol=1e-4
    )


def test_it_takes_networks_as_they_come(network, tiny_network):
    images = np.random.default_rng(1).normal(size=(2, 4, 4, 3))
    nested = keras.Sequential([keras.Input((4, 4, 3)), network])
    np.testing.assert_array_equal(grad_cam(nested, images), grad_cam(network, images))

    with_heads = tiny_network()
    plain = strip_heads(with_heads)
    before = [len(layer._inbound_nodes) for layer in plain.layers]
    values = [np.array(variable) for variable in with_heads.variables]
    maps = grad_cam(plain, np.random.default_rng(1).normal(size=(2, 8, 8, 3)))
    assert maps.shape == (2, 4, 4)
    # It leaves no trace in the network.
    assert [len(layer._inbound_nodes) for layer in plain.layers] == before
    for variable, value in zip(with_heads.variables, values, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_networks_without_a_map_are_refused():
    flat = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)],
        name="flat",
    )
    with pytest.raises(ValueError, match="feature map .* Received: `flat`"):
        grad_cam(flat, np.zeros((1, 4, 4, 3)))


def test_a_network_with_heads_is_refused(tiny_network):
    with pytest.raises(
        ValueError, match="`strip_heads`. Received: `net` with 1 inputs"
    ):
        grad_cam(tiny_network("net"), np.ones((1, 8, 8, 3)))
