"""Auxiliary heads for any functional classifier: where they go, attaching them."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import keras

from keras_hsakd.compat import layers_of
from keras_hsakd.graph import (
    ancestors,
    bottlenecks,
    flatten,
    has_kernel,
    node_of,
    operation_of,
    replay,
)
from keras_hsakd.heads import head_names, multiply_adds_by_part
from keras_hsakd.layers import BatchNormalization, Logits, finalize_states
from keras_hsakd.logits import CLASSIFIERS, check_logits, without_softmax
from keras_hsakd.ops import NUM_ROTATIONS
from keras_hsakd.suggestions import did_you_mean


def attach_heads(
    model: keras.Model,
    taps: Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str = "copy",
    num_views: int = NUM_ROTATIONS,
) -> keras.Model:
    """Attaches auxiliary heads to a classifier, to train or distil it with.

    `model` maps images to class logits or probabilities. It may be functional or
    `Sequential`, hold other models as layers, preprocess its images, and end in a
    softmax, which is taken off. All its layers are shared: what is trained afterwards
    is `model` itself.

    A head taps the model's feature maps and predicts class and view jointly:

    - `"copy"`: a copy of all that follows the tap, with weights of its own and
      `num_views * num_classes` classes. Hardly anything follows the last tap, so the
      last head first repeats the stage between the last two taps, at stride 1; where
      that stage does not take as many channels, after a 1x1 convolution to as many as
      it does.
    - `"light"`: average pooling to at most 8 x 8 positions, two 3x3 convolutions, and
      global average pooling. Cheaper, and for graphs that cannot be copied.

    Args:
        model: A built classifier for one batch of images of known size.
        taps: Names of layers whose outputs are tapped, in any order. For `"copy"`
            every path to the classifier must go through them. Defaults to `None`,
            those of `find_taps(model)`.
        num_classes: Number of classes, to give a model without a classifier, which
            ends in feature maps, one. Defaults to that of the model.
        head: `"copy"` or `"light"`. Defaults to `"copy"`.
        num_views: Number `M` of views that the heads tell apart, see
            `keras_hsakd.views`. Defaults to 4, the rotations.

    Returns:
        A functional `keras.Model` that outputs `{"logits": (B, N), "aux_1": (B, M * N),
        ..., "aux_L": (B, M * N)}`, shallowest head first.

    Raises:
        ValueError: If the model cannot be taken apart, is no classifier, or a tap does
            not suit; says what to do.

    Example:
    >>> model = keras.applications.MobileNetV2(
    ...     input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=10
    ... )
    >>> student = attach_heads(model)
    >>> head_names(student)
    ['aux_1', 'aux_2', 'aux_3', 'aux_4', 'aux_5']
    >>> keras_hsakd.strip_heads(student).count_params() == model.count_params()
    True

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.2.
    """
    if head not in ("copy", "light"):
        raise ValueError(
            f"Expected `head` to be 'copy' or 'light'. Received: head={head!r}"
        )
    classifier = _take_apart(model, num_classes)
    path = _feature_maps(classifier)
    if taps is None:
        chosen = _stage_ends(path)
        if not chosen:
            raise ValueError(
                f"Expected `{classifier.name}` to have feature maps that every path "
                "goes through. Received: none; name `taps`, with head='light'"
            )
    else:
        chosen = _named(classifier, taps)
    if head == "copy":
        crossed = [t for t in chosen if all(t is not x for x in path)]
        if crossed:
            raise ValueError(
                "Expected `taps` that every path goes through, to copy all that "
                "follows them; use head='light' for others. Received: "
                f"{[operation_of(tensor).name for tensor in crossed]}"
            )
    outputs = {"logits": classifier.logits}
    for number, tap in enumerate(chosen, start=1):
        name = f"aux_{number}"
        if head == "light":
            outputs[name] = _light_head(classifier, tap, num_views, name)
        else:
            before = chosen[-2] if number == len(chosen) > 1 else None
            outputs[name] = _copied_head(classifier, tap, before, num_views, name)
    return keras.Model(classifier.images, outputs, name=classifier.name)


def as_classifier(model: keras.Model) -> keras.Model:
    """Returns a classifier up to its class logits, sharing all layers.

    Args:
        model: As in `attach_heads`.

    Returns:
        A functional `keras.Model` whose output, the logits `(B, N)`, is float32 also
        under mixed precision.

    Raises:
        ValueError: As `attach_heads`.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> model = keras.Sequential([network, keras.layers.Softmax()])
    >>> as_classifier(model).layers[-1].name
    'logits'
    """
    classifier = _take_apart(model, None)
    return keras.Model(classifier.images, classifier.logits, name=classifier.name)


def with_new_classifier(model: keras.Model, num_classes: int) -> keras.Model:
    """Returns a classifier of other classes, sharing all layers but the last.

    Args:
        model: As in `attach_heads`; or one that ends in feature maps.
        num_classes: Number of classes `N`.

    Returns:
        A functional `keras.Model` to class logits `(B, N)`, of a new layer named
        `"logits"`, which is as the one before it but for its softmax; of pooled
        features where that was a convolution, or none.

    Raises:
        ValueError: As `attach_heads`.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=1000, heads=False)
    >>> with_new_classifier(model, num_classes=10).output_shape
    (None, 10)
    """
    flat = flatten(model)
    if len(flat.outputs[0].shape) == 4:
        return as_classifier(_classifying(flat, num_classes))
    classifier = _take_apart(flat, None)
    if isinstance(classifier.layer, keras.layers.Dense):
        config = {"name": "logits", "units": num_classes, "activation": "linear"}
        config = classifier.layer.get_config() | config | {"trainable": True}
        logits = type(classifier.layer).from_config(config)(classifier.features)
        return as_classifier(keras.Model(classifier.images, logits, name=flat.name))
    maps = keras.Model(classifier.images, classifier.features, name=flat.name)
    return as_classifier(_classifying(maps, num_classes))


def _classifying(maps, num_classes):
    """Returns a model of feature maps with a classifier."""
    features = keras.layers.GlobalAveragePooling2D(name="logits_pool")(maps.output)
    logits = keras.layers.Dense(num_classes, name="logits")(features)
    return keras.Model(maps.input, logits, name=maps.name)


@dataclasses.dataclass(frozen=True)
class Tap:
    """A place where a head can be attached, and what a head costs there.

    Attributes:
        layer: Name of the layer that is tapped.
        shape: Height, width and channels of its output.
        parameters: Number of parameters of the head.
        multiply_adds: Multiply-adds of one view through the head.
    """

    layer: str
    shape: tuple[int, int, int]
    parameters: int
    multiply_adds: int


def find_taps(
    model: keras.Model, num_classes: int | None = None, head: str = "copy"
) -> list[Tap]:
    """Returns the taps that `attach_heads` finds in a model, with their costs.

    A tap is the last tensor at its spatial resolution that every path from the image
    to the classifier goes through, so that no skip connection crosses it. Resolutions
    that differ by less than a third, as without padding, count as one. A first
    resolution with one convolution, where others have more, is a stem without a tap.

    Args:
        model: As in `attach_heads`.
        num_classes: As in `attach_heads`.
        head: As in `attach_heads`.

    Returns:
        A list of `Tap`, shallowest first.

    Raises:
        ValueError: As `attach_heads`.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> for tap in find_taps(model):
    ...     print(tap.layer, tap.shape)
    stage1_block1_relu2 (32, 32, 16)
    stage2_block1_relu2 (16, 16, 32)
    stage3_block1_relu2 (8, 8, 64)
    """
    return taps_of(attach_heads(model, num_classes=num_classes, head=head))


def taps_of(network: keras.Model) -> list[Tap]:
    """Returns where the heads of a network are, and what each costs.

    Args:
        network: As of `attach_heads`.

    Returns:
        A list of `Tap`, shallowest first.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> network = attach_heads(model, taps=["stage2_block1_relu2"])
    >>> [tap.layer for tap in taps_of(network)]
    ['stage2_block1_relu2']
    """
    backbone = frozenset(map(id, ancestors([network.output["logits"]])))
    costs = multiply_adds_by_part(network)
    found = []
    for name in head_names(network):
        parts = ancestors([network.output[name]], backbone)
        (tap,) = (tensor for tensor in parts if id(tensor) in backbone)
        layers = {id(op): op for op in map(operation_of, parts[1:])}
        found.append(
            Tap(
                operation_of(tap).name,
                tuple(tap.shape[1:]),
                sum(
                    layer.count_params()
                    for layer in layers.values()
                    if isinstance(layer, keras.layers.Layer)
                ),
                costs[name],
            )
        )
    return found


class _Classifier(NamedTuple):
    """A flat model, with its classifier found.

    Attributes:
        name: Name of the model.
        images: Symbolic tensor of the images.
        features: Symbolic tensor that the classifier takes.
        layer: The classifier, a `Dense` or `Conv2D` layer.
        logits: Symbolic tensor of the class logits.
        had_softmax: Whether the classifier computes a softmax, which was taken off.
    """

    name: str
    images: keras.KerasTensor
    features: keras.KerasTensor
    layer: keras.layers.Layer
    logits: keras.KerasTensor
    had_softmax: bool


def _take_apart(model, num_classes):
    """Returns a classifier with its logits, float32 and without a softmax."""
    flat = flatten(model)
    if len(flat.inputs) != 1 or len(flat.outputs) != 1 or isinstance(flat.output, dict):
        raise ValueError(
            f"Expected `{model.name}` to map one batch of images to the logits or "
            f"probabilities of classes. Received: {len(flat.inputs)} inputs and "
            f"outputs {flat.output}"
        )
    (images,), (output,) = flat.inputs, flat.outputs
    if len(images.shape) != 4 or None in images.shape[1:]:
        raise ValueError(
            f"Expected `{model.name}` to take images of known size (batch, height, "
            f"width, channels): build it with `input_shape`. Received: {images.shape}"
        )
    if len(output.shape) == 4 and num_classes is not None:
        flat = _classifying(flat, num_classes)
        (output,) = flat.outputs
    if len(output.shape) != 2 or num_classes not in (None, output.shape[-1]):
        wanted = "num_classes" if num_classes is None else num_classes
        raise ValueError(
            f"Expected `{model.name}` to output logits or probabilities of shape "
            f"(batch, {wanted}); give `num_classes` for a model that ends in feature "
            f"maps. Received: {tuple(output.shape)}"
        )
    flat = without_softmax(flat)
    (output,) = flat.outputs
    weighted = [t for t in bottlenecks(images, output) if has_kernel(operation_of(t))]
    layer = operation_of(weighted[-1]) if weighted else None
    had_softmax = isinstance(layer, Logits)
    inner = layer.layer if had_softmax else layer
    if not isinstance(inner, CLASSIFIERS) or weighted[-1].shape[-1] != output.shape[-1]:
        raise ValueError(
            f"Expected the last layer with weights of `{model.name}` to be a Dense or "
            f"Conv2D layer of {output.shape[-1]} units. "
            f"Received: {getattr(inner, 'name', None)!r}"
        )
    check_logits(flat)
    (features,) = node_of(weighted[-1]).input_tensors
    if keras.backend.standardize_dtype(output.dtype) in ("float16", "bfloat16"):
        output = keras.layers.Activation("linear", dtype="float32", name="float32")(
            output
        )
    return _Classifier(model.name, images, features, inner, output, had_softmax)


def _feature_maps(classifier):
    """Returns the bottlenecks that are feature maps, before any global pooling."""
    found = []
    trained = False
    for tensor in bottlenecks(classifier.images, classifier.features):
        operation = operation_of(tensor)
        if "Global" in type(operation).__name__ or len(tensor.shape) != 4:
            break
        # The convolutions before it may all be in branches that it joins.
        trained = trained or any(
            has_kernel(operation_of(x)) for x in ancestors([tensor])
        )
        resampled = isinstance(operation, _RESAMPLING)
        if trained and not resampled:
            found.append(tensor)
    return found


_RESAMPLING = (
    keras.layers.AveragePooling2D,
    keras.layers.Cropping2D,
    keras.layers.MaxPooling2D,
    keras.layers.ZeroPadding2D,
)


def _stage_ends(path):
    """Returns the last tensor of each resolution of a path, but a stem's."""
    stages = {}  # by the size that a stage begins with
    size = None
    for tensor in path:
        new_size = tensor.shape[1:3]
        if not size or any(2 * b >= 3 * a for a, b in zip(new_size, size, strict=True)):
            size = new_size
        stages[size] = tensor
    ends = list(stages.values())
    known = frozenset()
    kernels = []
    for tensor in ends:
        part = ancestors([tensor], known)
        kernels.append(
            sum(has_kernel(operation_of(x)) for x in part if id(x) not in known)
        )
        known |= frozenset(map(id, part))
    has_stem = len(ends) > 1 and kernels[0] == 1 < max(kernels)
    return ends[has_stem:]


def _named(classifier, names):
    """Returns the outputs of layers, in the order of the model."""
    wanted = list(names)
    tensors = {}
    for tensor in ancestors([classifier.features]):
        tensors[operation_of(tensor).name] = tensor
    unknown = [name for name in wanted if name not in tensors]
    if unknown or not wanted:
        hint = did_you_mean(unknown[0], tensors) if unknown else ""
        raise ValueError(
            f"Expected `taps` to name layers of `{classifier.name}` before its "
            f"classifier. Received: {unknown or wanted}{hint}"
        )
    flat = [name for name in wanted if len(tensors[name].shape) != 4]
    if flat:
        raise ValueError(
            "Expected `taps` to name layers whose outputs are feature maps (batch, "
            f"height, width, channels). Received: '{flat[0]}' of shape "
            f"{tensors[flat[0]].shape}"
        )
    return [tensor for name, tensor in tensors.items() if name in wanted]


def _copied_head(classifier, tap, before, num_views, name):
    """Returns the joint logits of a copy of all that follows a tap."""
    x = tap
    if before is not None:
        x = _repeated_stage(tap, before, name)
    (features,) = replay([classifier.features], {id(tap): x}, _copying(name))
    return _joint_logits(classifier, features, num_views, name)


def _repeated_stage(tap, before, name):
    """Applies a copy of the stage between two taps to the latter, at stride 1."""
    strided = _strided(tap, before)

    def repeat(x):
        # Keras warns of a layer that does not take the channels, and raises then.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*has unbuilt state")
            copying = _copying(f"{name}_repeated", strided)
            return replay([tap], {id(before): x}, copying)[0]

    try:
        return repeat(tap)
    except ValueError:
        # A skip connection or a squeeze-and-excitation wants its own channels.
        channels = keras.layers.Conv2D(
            before.shape[-1], 1, use_bias=False, name=f"{name}_channels"
        )
        return repeat(channels(tap))


def _strided(tap, before):
    """Returns ids of operations that shrink feature maps, or pad for one that does."""
    found = set()
    for tensor in ancestors([tap], frozenset([id(before)])):
        if tensor is before:
            continue
        operation = operation_of(tensor)
        strides = getattr(operation, "strides", 1)
        if max(strides) > 1 if isinstance(strides, tuple) else strides > 1:
            found.add(id(operation))
            for source in node_of(tensor).input_tensors:
                if isinstance(operation_of(source), keras.layers.ZeroPadding2D):
                    found.add(id(operation_of(source)))
    return found


def _copying(prefix, strided=frozenset()):
    """Returns a function for `replay` that applies copies of operations.

    Args:
        prefix: Put before the names of layers.
        strided: Ids of operations, as of `_strided`, to apply at stride 1.

    Returns:
        A function `apply(operation, args, kwargs)`. An operation with variables has one
        copy, which has its own; one without is applied itself.
    """
    copies = {}

    def copy(operation, changes):
        if not getattr(operation, "variables", ()) and not changes:
            return operation
        if id(operation) not in copies:
            changes |= {"name": f"{prefix}_{operation.name}", "trainable": True}
            copies[id(operation)] = _copied(operation, changes)
        return copies[id(operation)]

    def apply(operation, args, kwargs):
        # A frozen backbone's layers may be called in inference mode: the copies train.
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        changes = {}
        if id(operation) in strided:
            if isinstance(operation, keras.layers.ZeroPadding2D):
                return args[0]
            # A whole block as one layer may choose its padding itself.
            known = operation.get_config()
            changes = {"strides": 1, "padding": "same"}
            changes = {key: value for key, value in changes.items() if key in known}
        own = copy(operation, changes)
        outputs = own(*args, **kwargs)
        if own is not operation:
            _take_over_state(own, operation)
        return outputs

    return apply


def _take_over_state(copy, layer):
    """Gives layers that have weights, but none to train, the values of others'."""
    if not isinstance(layer, keras.layers.Layer):
        return
    for own, other in zip(layers_of(copy), layers_of(layer), strict=True):
        if own.weights and not own.trainable_weights:
            for variable, value in zip(own.weights, other.weights, strict=True):
                variable.assign(value)
            finalize_states(own)


def _copied(layer, changes, kind=None):
    """Returns a new layer of the configuration of another, but for some changes."""
    kind = kind or type(layer)
    try:
        return kind.from_config(kind.get_config(layer) | changes)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "Expected the layers that follow a tap to have a `get_config()` that their "
            "copies in the heads can be made from; head='light' needs that of the "
            f"classifier alone. Received: '{layer.name}' of type "
            f"{type(layer).__name__}: {str(error).strip().splitlines()[0]}"
        ) from error


def _joint_logits(classifier, features, num_views, name):
    """Returns the logits of a classifier like the model's, for the joint labels."""
    layer = classifier.layer
    kind = type(layer)
    if classifier.had_softmax:
        # A subclass may take the softmax in its own `call`.
        (kind,) = (parent for parent in kind.mro() if parent in CLASSIFIERS)
    size = "units" if isinstance(layer, keras.layers.Dense) else "filters"
    units = num_views * classifier.logits.shape[-1]
    dtype = keras.backend.result_type(layer.variable_dtype, "float32")
    changes = {"name": name, "trainable": True, "activation": "linear", size: units}
    joint = _copied(layer, changes | {"dtype": dtype}, kind)(features)
    if len(joint.shape) == 4:
        joint = keras.layers.GlobalAveragePooling2D(
            dtype=dtype, name=f"{name}_logits_pool"
        )(joint)
    return joint


def _light_head(classifier, tap, num_views, name):
    """Returns the joint logits of pooling, convolutions and a dense layer."""
    x = tap
    size = math.ceil(max(x.shape[1:3]) / 8)
    if size > 1:
        x = keras.layers.AveragePooling2D(size, padding="same", name=f"{name}_pool")(x)
    filters = min(max(tap.shape[-1], 64), 256)
    for number in (1, 2):
        x = keras.layers.Conv2D(
            filters, 3, padding="same", use_bias=False, name=f"{name}_conv{number}"
        )(x)
        x = BatchNormalization(name=f"{name}_bn{number}")(x)
        x = keras.layers.ReLU(name=f"{name}_relu{number}")(x)
    x = keras.layers.GlobalAveragePooling2D(name=f"{name}_logits_pool")(x)
    units = num_views * classifier.logits.shape[-1]
    dtype = keras.backend.result_type(classifier.layer.variable_dtype, "float32")
    return keras.layers.Dense(units, dtype=dtype, name=name)(x)
