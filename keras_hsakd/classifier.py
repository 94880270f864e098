"""A classifier taken apart: feature maps, features, class logits, what follows them."""

import dataclasses

import keras

from keras_hsakd.graph import (
    ancestors,
    bottlenecks,
    check_channels_last,
    flatten,
    has_kernel,
    is_quantized,
    node_of,
    operation_of,
)
from keras_hsakd.layers import Logits
from keras_hsakd.logits import CLASSIFIERS, check_logits, without_softmax


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier without models in it, by its parts.

    Attributes:
        name: Name of the model.
        images: Symbolic tensor of the images.
        features: Symbolic tensor that the layer with the class weights takes.
        layer: That layer, a `Dense` or `Conv2D`.
        products: Symbolic tensor that it gives, without a softmax.
        logits: Symbolic tensor `(B, N)` of the class logits, float32 or wider: that of
            `products`, after what follows it, such as a scale.
        had_softmax: Whether the layer computes a softmax, which was taken off.
    """

    name: str
    images: keras.KerasTensor
    features: keras.KerasTensor
    layer: keras.layers.Layer
    products: keras.KerasTensor
    logits: keras.KerasTensor
    had_softmax: bool

    @property
    def num_classes(self) -> int:
        """Number of classes `N`."""
        return self.logits.shape[-1]

    @property
    def dtype(self) -> str:
        """Dtype of logits: that of the weights, float32 at least."""
        return keras.backend.result_type(self.layer.variable_dtype, "float32")

    def tensors(self) -> dict[str, keras.KerasTensor]:
        """Returns the outputs of all layers up to the features, by their names."""
        found = ancestors([self.features])
        return {operation_of(tensor).name: tensor for tensor in found}

    def feature_maps(self) -> list[keras.KerasTensor]:
        """Returns the feature maps that every path goes through, before any pooling."""
        found = []
        trained = False
        for tensor in bottlenecks(self.images, self.features):
            operation = operation_of(tensor)
            if "Global" in type(operation).__name__ or len(tensor.shape) != 4:
                break
            # The convolutions before it may all be in branches that it joins.
            trained = trained or any(
                has_kernel(operation_of(x)) for x in ancestors([tensor])
            )
            if trained and not isinstance(operation, _RESAMPLING):
                found.append(tensor)
        return found

    def stage_ends(self) -> list[keras.KerasTensor]:
        """Returns the last feature map of each resolution, but that of a stem.

        Resolutions that differ by less than a third, as without padding, count as one.
        """
        stages = {}  # by the size that a stage begins with
        size = None
        for tensor in self.feature_maps():
            new_size = tensor.shape[1:3]
            pairs = list(zip(new_size, size or new_size, strict=True))
            if not size or any(2 * after >= 3 * before for before, after in pairs):
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


_RESAMPLING = (
    keras.layers.AveragePooling2D,
    keras.layers.Cropping2D,
    keras.layers.MaxPooling2D,
    keras.layers.ZeroPadding2D,
)


def take_apart(model: keras.Model, num_classes: int | None = None) -> Classifier:
    """Returns a classifier by its parts.

    Args:
        model: As in `keras_hsakd.attach_heads`.
        num_classes: Number of classes, to give a model that ends in feature maps a
            classifier. Defaults to that of the model.

    Raises:
        ValueError: If it cannot be taken apart, or is no classifier; says what to do.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10, heads=False)
    >>> take_apart(network).features.shape
    (None, 64)
    """
    check_channels_last()
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
        flat = classifying(flat, num_classes)
        (output,) = flat.outputs
    if len(output.shape) != 2 or num_classes not in (None, output.shape[-1]):
        wanted = "num_classes" if num_classes is None else num_classes
        raise ValueError(
            f"Expected `{model.name}` to output logits or probabilities of shape "
            f"(batch, {wanted}); give `num_classes` for a model that ends in feature "
            f"maps. Received: {tuple(output.shape)}"
        )
    return _with_logits(model.name, without_softmax(flat))


def _with_logits(name, flat):
    """Returns a flat classifier by its parts, after its softmax was taken off."""
    (images,), (logits,) = flat.inputs, flat.outputs
    weighted = [t for t in bottlenecks(images, logits) if has_kernel(operation_of(t))]
    products = weighted[-1] if weighted else images
    layer = operation_of(products)
    had_softmax = isinstance(layer, Logits)
    inner = layer.layer if had_softmax else layer
    classes = logits.shape[-1]
    if not isinstance(inner, CLASSIFIERS) or products.shape[-1] != classes:
        raise ValueError(
            f"Expected the last layer with weights of `{name}` to be a Dense or Conv2D "
            f"layer of {classes} units. Received: {inner.name!r}"
        )
    if is_quantized(inner):
        raise ValueError(
            f"Expected the classifier of `{name}` as it was trained, to learn from or "
            f"copy; give heads before `quantize`. Received: '{inner.name}', quantized "
            f"to {inner.quantization_mode}"
        )
    check_logits(flat)
    (features,) = node_of(products).input_tensors
    if keras.backend.standardize_dtype(logits.dtype) in ("float16", "bfloat16"):
        logits = keras.layers.Activation("linear", dtype="float32", name="float32")(
            logits
        )
    return Classifier(name, images, features, inner, products, logits, had_softmax)


def classifying(maps: keras.Model, num_classes: int) -> keras.Model:
    """Returns a model of feature maps with a classifier, sharing all layers.

    Args:
        maps: A functional model of one batch of images.
        num_classes: Number of classes `N`.
    """
    features = keras.layers.GlobalAveragePooling2D(name="logits_pool")(maps.output)
    logits = keras.layers.Dense(num_classes, name="logits")(features)
    return keras.Model(maps.input, logits, name=maps.name)
