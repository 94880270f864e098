"""Auxiliary heads for any functional classifier: where they go, attaching them."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hsakd import light
from keras_hsakd.classifier import Classifier, classifying, take_apart
from keras_hsakd.copies import copied_end, copied_head, copied_rest
from keras_hsakd.graph import ancestors, flatten, operation_of
from keras_hsakd.heads import head_names, multiply_adds_by_part
from keras_hsakd.names import HEADS
from keras_hsakd.ops import NUM_ROTATIONS
from keras_hsakd.suggestions import did_you_mean


def attach_heads(
    model: keras.Model,
    taps: Sequence[str] | None = None,
    num_classes: int | None = None,
    head: str = "light",
    num_views: int = NUM_ROTATIONS,
) -> keras.Model:
    """Attaches auxiliary heads to a classifier, to train or distil it with.

    `model` maps images to class logits or probabilities. It may be functional or
    `Sequential`, hold other models as layers, preprocess its images, and end in a
    softmax, which is taken off. All its layers are shared: what is trained afterwards
    is `model` itself.

    A head taps the model's feature maps and predicts class and view jointly:

    - `"light"`: pooling to at most 4 x 4 positions, 1x1 convolutions with one of each
      channel over all positions between them, two linear layers, the last of them the
      same for all views, and what follows the class weights in the model, such as
      a scale. All light heads of a network have as many channels, at most 256: as many
      as keep them together within 15 % of its multiply-adds and 25 % of its parameters.
      They have no fewer than 8, with which the heads of a tiny network may cost more.
    - `"copy"`: a copy of all that follows the tap, as in the paper, with weights of its
      own and `num_views * num_classes` classes. Hardly anything follows the last tap,
      so the last head first repeats the stage between the last two taps, at stride 1;
      where that stage does not take as many channels, after a 1x1 convolution to as
      many as it does. Copies often cost several times their network.

    Args:
        model: A built classifier for one batch of images of known size.
        taps: Names of layers whose outputs are tapped, in any order. For `"copy"`
            every path to the classifier must go through them. Defaults to `None`,
            those of `find_taps(model)`.
        num_classes: Number of classes, to give a model without a classifier, which
            ends in feature maps, one. Defaults to that of the model.
        head: `"light"` or `"copy"`. Defaults to `"light"`.
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
    if head not in HEADS:
        raise ValueError(
            f"Expected `head` to be one of {HEADS}. Received: head={head!r}"
        )
    classifier = take_apart(model, num_classes)
    chosen = classifier.stage_ends if taps is None else _named(classifier, taps)
    if not chosen:
        raise ValueError(
            f"Expected `{classifier.name}` to have feature maps that every path goes "
            "through. Received: none; name `taps`, with head='light'"
        )
    attach = _light_heads if head == "light" else _copied_heads
    outputs = {"logits": classifier.logits, **attach(classifier, chosen, num_views)}
    return keras.Model(classifier.images, outputs, name=classifier.name)


def _light_heads(classifier, taps, num_views):
    """Returns the joint logits of light heads by name."""
    found = light.heads(classifier.logits, taps, num_views, classifier.dtype)
    units = num_views * classifier.num_classes
    return {
        name: copied_rest(classifier, products, units, f"{name}_")
        for name, products in found.items()
    }


def _copied_heads(classifier, taps, num_views):
    """Returns the joint logits of copied heads by name."""
    path = classifier.feature_maps
    crossed = [t for t in taps if all(t is not x for x in path)]
    if crossed:
        raise ValueError(
            "Expected `taps` that every path goes through, to copy all that "
            "follows them; use head='light' for others. Received: "
            f"{[operation_of(tensor).name for tensor in crossed]}"
        )
    units = num_views * classifier.num_classes
    found = {}
    for number, tap in enumerate(taps, start=1):
        before = taps[-2] if number == len(taps) > 1 else None
        name = f"aux_{number}"
        found[name] = copied_head(classifier, tap, before, units, name)
    return found


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
    classifier = take_apart(model)
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
        return as_classifier(classifying(flat, num_classes))
    classifier = take_apart(flat)
    images, features = classifier.images, classifier.features
    if not isinstance(classifier.layer, keras.layers.Dense):
        maps = keras.Model(images, features, name=flat.name)
        return as_classifier(classifying(maps, num_classes))
    logits = copied_end(classifier, features, num_classes, "logits")
    return as_classifier(keras.Model(images, logits, name=flat.name))


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
    model: keras.Model, num_classes: int | None = None, head: str = "light"
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


def _named(classifier: Classifier, names: Sequence[str]) -> list:
    """Returns the outputs of layers, in the order of the model."""
    wanted = list(names)
    tensors = classifier.backbone_layers
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
