"""From settings to networks."""

import contextlib
import dataclasses
from collections.abc import Iterator

import keras

from keras_hsakd import distribution, heads, models, views
from keras_hsakd.attach import attach_heads, taps_of, with_new_classifier
from keras_hsakd.graph import with_preprocessing
from keras_hsakd.heads import is_plain, strip_heads
from keras_hsakd.layers import finalize_states
from keras_hsakd.ops import NUM_ROTATIONS
from keras_hsakd.runs import sources
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
    with_heads: bool = True,
) -> list[keras.Model]:
    """Returns the network of settings, and its peers, with initial weights by the seed.

    They take images of 0 to 255. What is not random of the weights is printed, and
    where all are.

    Args:
        training: Which network, and how it is trained.
        images: Images it takes, and whose classes it predicts.
        view_names: Name of the views that its heads tell apart.
        peers: Names of further networks.
        with_heads: Whether they have auxiliary heads. The other weights are the same
            without.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If there is no such network, it does not suit the images, or a
            setting does not suit it.
    """
    keras.utils.set_random_seed(training.seed)
    num_views = len(views.get(view_names))
    networks = []
    for settings in (training, *(of_another(training, peer) for peer in peers)):
        made = sources.make(settings, images, num_views)
        network = made.model
        if not with_heads:
            network = strip_heads(network)
        elif not _has_heads(network, settings, num_views):
            network = _with_heads(network, settings, num_views)
        if settings.freeze_backbone:
            _freeze(settings.model, made.loaded, network)
        networks.append(network)
    if training.synchronize_batch_norm:
        for network in networks:
            distribution.synchronize_batch_norm(network)
    return networks


def of_another(training: TrainingSettings, model: str) -> TrainingSettings:
    """Returns the settings of another network, which is trained alike.

    What one network's file or layers say is not for the other.

    Args:
        training: Settings of a network.
        model: Name of the other one, which may be the same.
    """
    if model == training.model:
        return training
    others = {"model": model, "taps": None, "freeze_backbone": False}
    if not (training.weights == "imagenet" and sources.is_application(model)):
        others["weights"] = None
    if not (sources.is_file(model) or sources.is_function(model)):
        others["preprocessing"] = None
    return dataclasses.replace(training, **others)


def _with_heads(network, training, num_views):
    """Attaches heads, and prints where they are if nobody said."""
    plain = strip_heads(network)
    network = attach_heads(plain, training.taps, None, training.head, num_views)
    if training.taps is None and training.model not in models.names():
        layers = " ".join(tap.layer for tap in taps_of(network))
        print(f"{training.model}: heads at `--taps {layers}`", flush=True)
    return network


def _has_heads(network, training, num_views):
    """Returns whether a network comes with the heads that are asked for."""
    if is_plain(network) or training.taps is not None:
        return False
    if training.model not in models.names() and training.head == "copy":
        return False  # a file or a function may come with any
    return heads.num_views(network) == num_views


def _freeze(name, loaded, network):
    """Freezes layers of a network that were loaded."""
    if not loaded:
        raise ValueError(
            "Expected `weights`, or a .keras file as `model`, for `freeze_backbone`: "
            f"random weights are not to be frozen. Received: '{name}'"
        )
    for layer in loaded:
        layer.trainable = False
    if not network.trainable_variables:
        raise ValueError(
            "Expected something to train beside the frozen layers, heads or a new "
            f"classifier. Received: freeze_backbone=True for '{name}', whose layers "
            "were all loaded"
        )


def trained(training: TrainingSettings, images: Images) -> keras.Model:
    """Returns a network that needs no training, with heads for rotations or none.

    Args:
        training: As in `create`.
        images: As in `create`.

    Raises:
        ValueError: As `create`, or if not all weights are loaded.
    """
    made = sources.make(training, images, NUM_ROTATIONS)
    if made.new:
        raise ValueError(
            f"Expected weights for all layers of '{training.model}', trained on the "
            f"{len(images.class_names)} classes of the data. "
            f"Received: none for {made.new}"
        )
    if is_plain(made.model) or heads.num_views(made.model) != NUM_ROTATIONS:
        return strip_heads(made.model)
    return made.model


def linear_classifier(
    trained: keras.Model, training: TrainingSettings, images: Images
) -> keras.Model:
    """Returns a network without heads with a new classifier, all else frozen.

    Args:
        trained: The network.
        training: How the classifier is trained.
        images: Images it takes, those of the zoo with their own normalisation, and
            whose classes it predicts.
    """
    trained = sources.of_precision(trained, training.precision)
    if training.model in models.names():  # others have a preprocessing of their own
        trained = with_preprocessing(trained, images.preprocessing())
    keras.utils.set_random_seed(training.seed)
    trained.trainable = False  # batch normalization then keeps to its statistics
    return with_new_classifier(trained, len(images.class_names))


def on_backbone(
    run: Run,
    checkpoint: str,
    training: TrainingSettings,
    images: Images,
    view_names: str,
) -> keras.Model:
    """Returns the network of settings with the trained backbone of a run.

    Args:
        run: A run of the same network, with heads or without.
        checkpoint: Which of its networks.
        training: As in `create`.
        images: As in `create`.
        view_names: As in `create`.

    Raises:
        ValueError: As `create`, or if the run is of another network.
    """
    if training.freeze_backbone or training.weights is not None:
        raise ValueError(
            "Expected no `weights` and no `freeze_backbone` with `backbone`, whose "
            "weights are taken and frozen. "
            f"Received: weights={training.weights!r}, "
            f"freeze_backbone={training.freeze_backbone}"
        )
    if training.model in models.names():
        (network,) = create(training, images, view_names)
        _take_over(run, checkpoint, network)
        return network
    if run.record["training"]["model"] != sources.absolute(training).model:
        raise ValueError(
            f"Expected `backbone` to be a run of {training.model}. "
            f"Received: '{run.path}', a {run.describe()}"
        )
    backbone = sources.free(strip_heads(run.network(checkpoint)))
    backbone = sources.of_precision(backbone, training.precision)
    keras.utils.set_random_seed(training.seed)
    network = _with_heads(backbone, training, len(views.get(view_names)))
    if training.synchronize_batch_norm:
        distribution.synchronize_batch_norm(network)
    return network


def _take_over(run, checkpoint, network):
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
