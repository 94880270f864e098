"""From settings to networks: the zoo, `keras.applications`, files, your function."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_hsakd import distribution, heads, models, views
from keras_hsakd.attach import as_classifier, attach_heads, with_new_classifier
from keras_hsakd.compat import shapes_only
from keras_hsakd.graph import (
    bottlenecks,
    flatten,
    operation_of,
    replay,
    with_preprocessing,
)
from keras_hsakd.heads import is_plain, strip_heads
from keras_hsakd.layers import finalize_states
from keras_hsakd.ops import NUM_ROTATIONS
from keras_hsakd.runs import applications
from keras_hsakd.runs.folder import Run
from keras_hsakd.runs.images import Images
from keras_hsakd.runs.settings import TrainingSettings
from keras_hsakd.sizes import ImageSize, edges
from keras_hsakd.suggestions import did_you_mean


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
        made = _made(settings, images, num_views)
        network = made.model
        if not with_heads:
            network = strip_heads(network)
        elif not _has_heads(network, settings, num_views):
            network = attach_heads(
                strip_heads(network), settings.taps, None, settings.head, num_views
            )
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
    if not (training.weights == "imagenet" and _is_application(model)):
        others["weights"] = None
    if not (_is_file(model) or _is_function(model)):
        others["preprocessing"] = None
    return dataclasses.replace(training, **others)


def check_name(model: str) -> None:
    """Raises a ValueError unless a network has that name, or is where it says."""
    if _is_file(model) or _is_function(model) or model in models.names():
        return
    known = [applications.PREFIX + name for name in applications.names()]
    if model not in known:
        raise ValueError(
            "Expected `model` to be a network of `keras-hsakd models`, "
            f"{applications.PREFIX}NAME, a .keras file or package.module:function. "
            f"Received: '{model}'{did_you_mean(model, [*models.names(), *known])}"
        )


def _is_application(name):
    return name.startswith(applications.PREFIX)


def _is_file(name):
    return name.endswith(".keras")


def _is_function(name):
    return ":" in name and not _is_file(name)


def _has_heads(network, training, num_views):
    """Returns whether a network comes with the heads that are asked for."""
    if is_plain(network) or training.taps is not None or training.head != "copy":
        return False
    return heads.num_views(network) == num_views


class _Made(NamedTuple):
    """A classifier of images of 0 to 255, or a network with heads.

    Attributes:
        model: A functional `keras.Model`.
        loaded: Its layers whose weights are not random.
    """

    model: keras.Model
    loaded: tuple[keras.layers.Layer, ...] = ()


def _made(training, images, num_views):
    """Returns the network of settings, whatever heads it comes with."""
    name = training.model
    check_name(name)
    shape = tuple(images.train.element_spec[0].shape[1:])
    is_others = _is_file(name) or _is_function(name)
    if training.weights is not None and not _is_application(name):
        raise ValueError(
            "Expected no `weights` but of a classifier of keras.applications. "
            f"Received: weights='{training.weights}' for '{name}'"
        )
    if training.preprocessing is not None and not is_others:
        raise ValueError(
            "Expected no `preprocessing` but of a file or a function, whose own is not "
            f"known. Received: preprocessing='{training.preprocessing}' for '{name}'"
        )
    if _is_application(name):
        return _of_applications(training, images, shape)
    if is_others:
        of = _of_a_file if _is_file(name) else _of_a_function
        return of(name, training, images, shape)
    network = models.create(
        name, len(images.class_names), input_shape=shape, num_views=num_views
    )
    return _Made(with_preprocessing(network, images.preprocessing()))


def _of_applications(training, images, shape):
    name, weights = training.model, training.weights
    made = applications.create(
        name.removeprefix(applications.PREFIX), shape, len(images.class_names), weights
    )
    layers = [layer for layer in made.model.layers if layer.name in made.loaded]
    if weights is None:
        print(f"{name}: random weights; `--weights` loads others", flush=True)
    else:
        _tell(name, f"weights of {weights}", layers, made.model)
    return _Made(made.model, tuple(layers))


def _of_a_file(path, training, images, shape):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Expected `model` to be a file. Received: '{path}'")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file shows as whatever its parsers raise
        raise ValueError(
            "Expected `model` to be a whole Keras file, of layers that are known "
            "(`--import` names the module of others). "
            f"Received: '{path}', {type(error).__name__}: {error}"
        ) from error
    model = _trainable(_prepared(path, model, training, images, shape))
    before = {id(layer) for layer in model.layers}
    classes = len(images.class_names)
    if is_plain(model):
        model = as_classifier(model)
    if heads.signature(model).num_classes != classes:
        model = with_new_classifier(strip_heads(model), classes)
    loaded = [
        layer
        for layer in model.layers
        if layer.weights and {id(layer), id(getattr(layer, "layer", None))} & before
    ]
    _tell(path, "its weights", loaded, model)
    return _Made(model, tuple(loaded))


def _of_a_function(name, training, images, shape):
    model = _function(name)(shape, len(images.class_names))
    model = _prepared(name, model, training, images, shape)
    if is_plain(model):
        model = as_classifier(model)
    if (classes := heads.signature(model).num_classes) != len(images.class_names):
        raise ValueError(
            f"Expected '{name}' to return a model of {len(images.class_names)} "
            f"classes, as it was told. Received: {classes} classes"
        )
    return _Made(model)


def _function(name):
    """Returns the function of a name as `package.module:function`."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            "Expected `model` to name a module that can be imported, from here or "
            f"installed, before the colon. Received: '{name}'; {error}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"Expected `model` to name a function of '{module_name}' after the colon. "
            f"Received: '{name}'{did_you_mean(function_name, known)}"
        )
    try:
        inspect.signature(function).bind((), 0)
    except TypeError as error:
        raise ValueError(
            f"Expected '{name}' to take the shape (height, width, channels) of the "
            f"images and the number of classes. Received: {error}"
        ) from error
    return function


def _prepared(name, model, training, images, shape):
    """Returns somebody's model as one that takes the images of a run, of 0 to 255."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected '{name}' to return a keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    model = flatten(model)
    taken = model.input_shape[1:] if len(model.inputs) == 1 else None
    if taken is None or len(taken) != 3:
        raise ValueError(
            f"Expected '{name}' to take one batch of images. Received: input shape "
            f"{model.input_shape}"
        )
    if any(
        wanted not in (None, edge) for wanted, edge in zip(taken, shape, strict=True)
    ):
        raise ValueError(
            f"Expected images of the size that '{name}' takes, {taken[0]} x {taken[1]} "
            f"with {taken[2]} channels (`--image-size`). Received: {shape[0]} x "
            f"{shape[1]} with {shape[2]} channels"
        )
    if None in taken:
        model = _of_shape(model, shape)
    preprocessing = training.preprocessing
    if preprocessing is None:
        if not _begins_with_preprocessing(model):
            raise ValueError(
                f"Expected `preprocessing`, for '{name}' does not begin with layers of "
                "its own: 'inside' if it takes images of 0 to 255 as they are, "
                "'normalize' if --mean and --std are to be applied before it. "
                "Received: none"
            )
        preprocessing = "inside"
    if preprocessing == "normalize":
        model = with_preprocessing(model, images.preprocessing())
    return model


def _of_shape(model, shape):
    """Returns a model for images of one shape, sharing all layers."""
    images = keras.Input(shape, name=operation_of(model.inputs[0]).name)
    outputs = replay(model.outputs, {id(model.inputs[0]): images})
    structure = keras.tree.pack_sequence_as(model.output, outputs)
    return keras.Model(images, structure, name=model.name)


# Layers and operations that images are preprocessed by.
_PREPROCESSING = ("Rescaling", "Normalization", "Divide", "TrueDivide", "Multiply")


def _begins_with_preprocessing(model):
    """Returns whether something is done to the values of images before all weights."""
    for tensor in bottlenecks(model.inputs[0], model.outputs[0]):
        operation = operation_of(tensor)
        if type(operation).__name__ in _PREPROCESSING:
            return True
        if getattr(operation, "weights", ()):
            return False
    return False


def _trainable(model):
    """Returns a model after what was frozen when it was saved is free again."""
    for layer in model.layers:
        layer.trainable = True
    return model


def _tell(name, source, loaded, model):
    """Prints which layers of a network are trained already."""
    known = {id(layer) for layer in loaded}
    new = [x.name for x in model.layers if x.weights and id(x) not in known]
    classifier = (
        f"; a new classifier of {model.output_shape[-1]} classes" if new else ""
    )
    print(f"{name}: {source}{classifier}", flush=True)


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


def absolute(training: TrainingSettings) -> TrainingSettings:
    """Returns settings that mean the same wherever a command is started."""
    paths = {name: os.path.abspath(path) for name, path in _files_of(training).items()}
    return dataclasses.replace(training, **paths)


def _files_of(training):
    """Returns the files that the first weights of a network are read from."""
    given = {"model": training.model, "weights": training.weights}
    if not _is_file(training.model):
        del given["model"]
    if training.weights in (None, "imagenet"):
        del given["weights"]
    return given


def digests(training: TrainingSettings) -> dict[str, str]:
    """Returns checksums of the files that a network's first weights are read from.

    Args:
        training: Which network.

    Returns:
        A dict from the names of settings to the beginnings of SHA-256 sums.

    Raises:
        FileNotFoundError: If one is not there.
    """
    found = {}
    for name, path in _files_of(training).items():
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"Expected `{name}` to be a file. Received: '{path}'"
            )
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found


def trained(training: TrainingSettings, images: Images) -> keras.Model:
    """Returns a network that needs no training, with heads for rotations or none.

    Args:
        training: As in `create`.
        images: As in `create`.

    Raises:
        ValueError: As `create`, or if not all weights are loaded.
    """
    made = _made(training, images, NUM_ROTATIONS)
    known = {id(layer) for layer in made.loaded}
    new = [x.name for x in made.model.layers if x.weights and id(x) not in known]
    if new:
        raise ValueError(
            f"Expected weights for all layers of '{training.model}', trained on the "
            f"{len(images.class_names)} classes of the data. Received: none for {new}"
        )
    if is_plain(made.model) or heads.num_views(made.model) != NUM_ROTATIONS:
        return strip_heads(made.model)
    return made.model


def _of_the_zoo(name, head, num_classes, input_shape, num_views):
    network = models.create(
        name, num_classes=num_classes, input_shape=input_shape, num_views=num_views
    )
    if head == "copy":
        return network
    return attach_heads(strip_heads(network), head=head, num_views=num_views)


@functools.cache
def multiply_adds_by_part(
    name: str, head: str, num_classes: int, image_size: ImageSize, num_views: int
) -> dict[str, int]:
    """Returns what a view costs in the parts of a network of the zoo, never made.

    Args:
        name: Name of the network.
        head: Which auxiliary heads it has, as in `TrainingSettings`.
        num_classes: Number of classes.
        image_size: Int, height and width of its images, or (height, width).
        num_views: Number of views that its heads tell apart.

    Returns:
        As `keras_hsakd.heads.multiply_adds_by_part`.
    """
    with shapes_only():
        shape = (*edges(image_size), 3)
        network = _of_the_zoo(name, head, num_classes, shape, num_views)
    return heads.multiply_adds_by_part(network)


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
    if run.record["training"]["model"] != absolute(training).model:
        raise ValueError(
            f"Expected `backbone` to be a run of {training.model}. "
            f"Received: '{run.path}', a {run.describe()}"
        )
    backbone = _trainable(strip_heads(run.network(checkpoint)))
    keras.utils.set_random_seed(training.seed)
    num_views = len(views.get(view_names))
    return attach_heads(backbone, training.taps, None, training.head, num_views)


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
