"""The contract of a network with auxiliary heads; removing heads, splitting them off.

A network with heads is a functional `keras.Model` whose output is the dict
`{"logits": (B, N), "aux_1": (B, M * N), ..., "aux_L": (B, M * N)}`, shallowest head
first, for `N` classes and `M` views of an image: 4 rotations by default. A plain
classifier, whose one output is the class logits `(B, N)`, is the case of no heads and
one view.
"""

import dataclasses

import keras

from keras_hsakd.graph import (
    ancestors,
    check_functional,
    multiply_adds,
    replay,
)
from keras_hsakd.logits import check_logits, without_softmax
from keras_hsakd.ops import NUM_ROTATIONS


def head_names(model: keras.Model) -> list[str]:
    """Returns the names of a network's auxiliary heads, shallowest first.

    Args:
        model: A functional model with auxiliary heads.

    Returns:
        `["aux_1", ..., "aux_L"]`.

    Raises:
        ValueError: If the model does not honour the contract of a network with heads.

    Example:
    >>> head_names(keras_hsakd.models.create("resnet8", num_classes=10))
    ['aux_1', 'aux_2', 'aux_3']
    """
    if not isinstance(model, keras.Model) or not hasattr(model, "output"):
        raise ValueError(
            "Expected a functional keras.Model with auxiliary heads. "
            f"Received: {model!r} of type {type(model).__name__}"
        )
    outputs = model.output
    if not isinstance(outputs, dict) or "logits" not in outputs or len(outputs) < 2:
        received = sorted(outputs) if isinstance(outputs, dict) else outputs
        raise ValueError(
            f"Expected `{model.name}` to have auxiliary heads: a dict of outputs with "
            "'logits' and 'aux_1' to 'aux_L', as `keras_hsakd.models.create(...)` "
            f"builds it. Received outputs: {received}"
        )
    names = [f"aux_{i}" for i in range(1, len(outputs))]
    if set(names) != set(outputs) - {"logits"}:
        raise ValueError(
            f"Expected the outputs of `{model.name}` to be named "
            f"{['logits', *names]}. Received: {sorted(outputs)}"
        )
    _check_dtypes(model, outputs)
    classes = outputs["logits"].shape[-1]
    units = {name: outputs[name].shape[-1] for name in names}
    if len(set(units.values())) > 1 or units["aux_1"] not in range(
        2 * classes, units["aux_1"] + 1, classes
    ):
        raise ValueError(
            f"Expected the heads of `{model.name}` to have {NUM_ROTATIONS * classes} "
            f"units each, {NUM_ROTATIONS} rotations of each of its {classes} classes, "
            f"or another multiple for other views. Received: {units}"
        )
    return names


def output_names(model: keras.Model) -> list[str]:
    """Returns the names of a network's outputs: the logits, then its auxiliary heads.

    Args:
        model: A functional model with auxiliary heads, or a plain classifier.

    Returns:
        `["logits", "aux_1", ..., "aux_L"]`; `["logits"]` for a plain classifier.

    Raises:
        ValueError: If the model is neither.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> output_names(network), output_names(strip_heads(network))
    (['logits', 'aux_1', 'aux_2', 'aux_3'], ['logits'])
    """
    if not is_plain(model):
        return ["logits", *head_names(model)]
    (logits,) = model.outputs
    # A `Sequential` has its output as `output` only once it was called.
    structure = getattr(model, "output", logits)
    if structure is not logits or len(logits.shape) != 2:
        raise ValueError(
            f"Expected `{model.name}` to output class logits of shape (batch, classes)."
            f" Received: {structure}"
        )
    _check_dtypes(model, {"logits": logits})
    return ["logits"]


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a network takes and gives, by which teacher and student are compared.

    Attributes:
        name: The network's.
        image_shape: Shape `(height, width, channels)`; edges may be `None`.
        outputs: The widths of its outputs by their names, the logits first.
    """

    name: str
    image_shape: tuple[int | None, ...]
    outputs: dict[str, int]

    @property
    def heads(self) -> list[str]:
        """Names of the auxiliary heads, shallowest first."""
        return list(self.outputs)[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes `N`."""
        return self.outputs["logits"]

    @property
    def num_views(self) -> int:
        """Number of views `M` that the heads tell apart; 1 without heads."""
        return list(self.outputs.values())[-1] // self.num_classes


def check_counts(first: Signature, second: Signature, who: str) -> None:
    """Raises a ValueError unless two networks have as many classes and views.

    Args:
        first: What one takes and gives.
        second: The same of the other.
        who: What an error calls the two.

    Example:
    >>> three = Signature("three", (8, 8, 3), {"logits": 3})
    >>> check_counts(three, Signature("four", (8, 8, 3), {"logits": 4}), "both")
    Traceback (most recent call last):
    ValueError: Expected both to have the same number of classes. Received: 3 in \
`three` and 4 in `four`
    """
    for what, count, other in (
        ("classes", first.num_classes, second.num_classes),
        ("views", first.num_views, second.num_views),
    ):
        if count != other:
            raise ValueError(
                f"Expected {who} to have the same number of {what}. Received: {count} "
                f"in `{first.name}` and {other} in `{second.name}`"
            )


def signature(model: keras.Model) -> Signature:
    """Returns what a network takes and gives.

    Args:
        model: A functional model with auxiliary heads, or a plain classifier.

    Raises:
        ValueError: If the model is neither.

    Example:
    >>> signature(keras_hsakd.models.create("resnet8", num_classes=10)).outputs
    {'logits': 10, 'aux_1': 40, 'aux_2': 40, 'aux_3': 40}
    """
    names = output_names(model)
    tensors = model.outputs if len(names) == 1 else [model.output[n] for n in names]
    widths = [tensor.shape[-1] for tensor in tensors]
    shape = tuple(model.input_shape[1:])
    return Signature(model.name, shape, dict(zip(names, widths, strict=True)))


def is_plain(model: keras.Model) -> bool:
    """Returns whether a model has a single output, and so no auxiliary heads."""
    outputs = getattr(model, "outputs", None) or []
    return len(outputs) == 1 and not isinstance(getattr(model, "output", None), dict)


def named_outputs(model: keras.Model, images, training: bool = False) -> dict:
    """Returns a network's outputs by their names, those of a plain classifier too.

    Args:
        model: A functional model with auxiliary heads, or a plain classifier.
        images: Tensor of shape `(B, H, W, C)`.
        training: See `keras.Model.__call__`. Defaults to `False`.

    Returns:
        Dict with the keys `output_names(model)`.

    Example:
    >>> network = strip_heads(keras_hsakd.models.create("resnet8", num_classes=10))
    >>> tuple(named_outputs(network, np.zeros((2, 32, 32, 3)))["logits"].shape)
    (2, 10)
    """
    outputs = model(images, training=training)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def num_views(model: keras.Model) -> int:
    """Returns the number of views of an image that a network learns from.

    Args:
        model: A functional model with auxiliary heads, or a plain classifier.

    Returns:
        The number `M` of views that the heads tell apart, 4 for the rotations; 1 for a
        plain classifier.

    Raises:
        ValueError: If the model is neither.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> num_views(network), num_views(strip_heads(network))
    (4, 1)
    """
    return signature(model).num_views


def multiply_adds_by_part(model: keras.Model) -> dict[str, int]:
    """Returns the multiply-adds of one view through the parts of a network.

    Counts as `keras_hsakd.models.multiply_adds`.

    Args:
        model: A functional model with auxiliary heads, or a plain classifier, of known
            sizes.

    Returns:
        Dict of `"backbone"`, all that the class logits depend on, and of each head by
        its name, what it adds to that.

    Raises:
        ValueError: If the model is neither.

    Example:
    >>> network = keras_hsakd.models.create("wrn_16_2", num_classes=100)
    >>> multiply_adds_by_part(network)["backbone"]
    101118464
    """
    names = output_names(model)
    logits = model.outputs if len(names) == 1 else [model.output["logits"]]
    backbone = frozenset(map(id, ancestors(logits)))
    return {
        "backbone": multiply_adds(logits),
        **{name: multiply_adds([model.output[name]], backbone) for name in names[1:]},
    }


def _check_dtypes(model, outputs):
    """Raises a ValueError unless the outputs of a network are float32 or wider."""
    for name, output in outputs.items():
        dtype = keras.backend.standardize_dtype(output.dtype)
        if dtype not in ("float32", "float64"):
            raise ValueError(
                f"Expected output '{name}' of `{model.name}` to be float32, also under "
                f"mixed precision: give its last layer dtype='float32'. "
                f"Received: {dtype}"
            )


def strip_heads(model: keras.Model) -> keras.Model:
    """Returns the plain model from image to class logits, sharing weights.

    Args:
        model: A functional model with auxiliary heads, or one without, which is
            returned as it is; a softmax that it ends in is taken off.

    Returns:
        A functional `keras.Model` with one output of shape `(B, N)`.

    Raises:
        ValueError: If the model has several outputs that are not heads, or gives
            probabilities that cannot be traced back to logits.

    Example:
    >>> model = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> strip_heads(model).output_shape
    (None, 10)
    """
    if is_plain(model):
        plain = without_softmax(model)
        check_logits(plain)
        return plain
    head_names(model)
    check_functional(model)
    return keras.Model(model.input, model.output["logits"], name=model.name)


def prepared(network: keras.Model, role: str) -> keras.Model:
    """Returns a network that gives class logits, sharing all layers.

    A softmax at the end of a plain classifier is taken off; what a network with heads
    gives must be logits.

    Args:
        network: A functional model with auxiliary heads, or a plain classifier.
        role: What an error calls it.

    Raises:
        ValueError: If it does not map one batch of images to class logits.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> prepared(network, "teacher") is network
    True
    """
    try:
        if isinstance(network, keras.Model):
            check_functional(network)
        output_names(network)
        if is_plain(network):
            network = strip_heads(network)
        else:
            check_logits(network)
        shape = network.input_shape
        if not isinstance(shape, tuple) or len(shape) != 4:
            raise ValueError(
                f"Expected `{network.name}` to take one batch of images, of shape "
                f"(batch, height, width, channels). Received: input shape {shape}"
            )
    except ValueError as error:
        raise ValueError(f"`{role}`: {error}") from None
    return network


@dataclasses.dataclass(frozen=True)
class Parts:
    """A network with heads in two halves that share its layers.

    Attributes:
        backbone: Model from images to `{"logits": ..., "tap_1": ..., ...}`.
        heads: Model from a list of the taps to `{"aux_1": ..., ...}`.
        tap_names: The backbone's outputs that `heads` takes, in order.
    """

    backbone: keras.Model
    heads: keras.Model
    tap_names: list[str]


def split(model: keras.Model) -> Parts:
    """Cuts a network with heads where its heads leave the backbone.

    The backbone is all that the class logits depend on; a tap is a tensor of the
    backbone that a layer outside of it takes.

    Args:
        model: A functional model with auxiliary heads.

    Returns:
        The two halves; `heads(taps of backbone(x))` and the logits of `backbone(x)`
        are `model(x)`.

    Raises:
        ValueError: If the model does not honour the contract of a network with heads.

    Example:
    >>> parts = split(keras_hsakd.models.create("resnet8", num_classes=10))
    >>> parts.tap_names
    ['tap_1', 'tap_2', 'tap_3']
    """
    names = head_names(model)
    backbone_tensors = frozenset(map(id, ancestors([model.output["logits"]])))
    head_tensors = ancestors([model.output[name] for name in names], backbone_tensors)
    taps = [tensor for tensor in head_tensors if id(tensor) in backbone_tensors]
    tap_names = [f"tap_{i}" for i in range(1, len(taps) + 1)]
    backbone = keras.Model(
        model.input,
        {"logits": model.output["logits"], **dict(zip(tap_names, taps, strict=True))},
    )
    # Not `keras.Model(taps, ...)`: Keras loses the way where backbone and head share a
    # layer without weights.
    inputs = [keras.Input(batch_shape=tap.shape, dtype=tap.dtype) for tap in taps]
    outputs = replay(
        [model.output[name] for name in names],
        {id(tap): x for tap, x in zip(taps, inputs, strict=True)},
    )
    heads = keras.Model(inputs, dict(zip(names, outputs, strict=True)))
    return Parts(backbone, heads, tap_names)
