"""From settings to networks."""

import contextlib
import functools
from collections.abc import Iterator

import keras

from keras_hsakd import distribution, heads, models, views
from keras_hsakd.attach import attach_heads
from keras_hsakd.compat import shapes_only
from keras_hsakd.graph import with_preprocessing
from keras_hsakd.heads import strip_heads
from keras_hsakd.layers import finalize_states
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.images import Images
from keras_hsakd.runs.settings import TrainingSettings


@contextlib.contextmanager
def construction(precision: str, strategy) -> Iterator[None]:
    """Makes networks in the block belong to a strategy and follow a dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        with strategy.scope(), distribution.lost_workers_named():
            yield
    finally:
        keras.config.set_dtype_policy(before)


def create(
    training: TrainingSettings,
    images: Images,
    view_names: str = "rotations",
    peers: tuple[str, ...] = (),
) -> list[keras.Model]:
    """Returns the network of settings, and its peers, with initial weights by the seed.

    They take images of 0 to 255.

    Args:
        training: Which network, and how it is trained.
        images: Images it takes, and whose classes it predicts.
        view_names: Name of the views that its heads tell apart.
        peers: Names of further networks.
    """
    keras.utils.set_random_seed(training.seed)
    networks = [
        _of_the_zoo(
            name,
            training.head,
            num_classes=len(images.class_names),
            input_shape=tuple(images.train.element_spec[0].shape[1:]),
            num_views=len(views.get(view_names)),
        )
        for name in (training.model, *peers)
    ]
    networks = [with_preprocessing(n, images.preprocessing()) for n in networks]
    if training.synchronize_batch_norm:
        for network in networks:
            distribution.synchronize_batch_norm(network)
    return networks


def _of_the_zoo(name, head, num_classes, input_shape, num_views):
    network = models.create(
        name, num_classes=num_classes, input_shape=input_shape, num_views=num_views
    )
    if head == "copy":
        return network
    return attach_heads(strip_heads(network), head=head, num_views=num_views)


@functools.cache
def multiply_adds_by_part(
    name: str, head: str, num_classes: int, image_size: int, num_views: int
) -> dict[str, int]:
    """Returns what a view costs in the parts of a network of the zoo, never made.

    Args:
        name: Name of the network.
        head: Which auxiliary heads it has, as in `TrainingSettings`.
        num_classes: Number of classes.
        image_size: Height and width of its images.
        num_views: Number of views that its heads tell apart.

    Returns:
        As `keras_hsakd.heads.multiply_adds_by_part`.
    """
    with shapes_only():
        shape = (image_size, image_size, 3)
        network = _of_the_zoo(name, head, num_classes, shape, num_views)
    return heads.multiply_adds_by_part(network)


def linear_classifier(
    trained: keras.Model, training: TrainingSettings, images: Images
) -> keras.Model:
    """Returns a network without heads with a new classifier, all else frozen.

    Args:
        trained: The network.
        training: How the classifier is trained.
        images: Images it takes, with their own normalisation, and whose classes it
            predicts.
    """
    trained = with_preprocessing(trained, images.preprocessing())
    keras.utils.set_random_seed(training.seed)
    trained.trainable = False  # batch normalization then keeps to its statistics
    classifier = trained.get_layer("logits")
    new = type(classifier).from_config(
        {**classifier.get_config(), "units": len(images.class_names)}
    )
    new.trainable = True
    return keras.Model(trained.input, new(classifier.input), name=trained.name)


def take_over(run: Run, checkpoint: str, network: keras.Model) -> None:
    """Gives a network's backbone the weights of a run's, of the same architecture."""
    trained, backbone = map(strip_heads, (run.network(checkpoint), network))
    shapes = [
        {v.path: tuple(v.shape) for v in model.variables}
        for model in (trained, backbone)
    ]
    if shapes[0] != shapes[1]:
        differing = sorted(dict(shapes[0].items() ^ shapes[1].items()))
        raise ValueError(
            f"Expected `backbone` to be a run of {network.name}, on the same images. "
            f"Received: '{run.path}', a {run.describe()}; different: {differing[:5]}"
        )
    values = {v.path: v for v in trained.variables}
    for variable in backbone.variables:
        variable.assign(values[variable.path])
    finalize_states(backbone)
