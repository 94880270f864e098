"""A classifier taken apart: feature maps, features, class logits, what follows them."""

import functools
import re
from collections.abc import Collection

import keras

from keras_hsakd.graph import (
    ancestors,
    bottlenecks,
    check_channels_last,
    check_functional,
    flatten,
    has_kernel,
    is_quantized,
    node_of,
    operation_of,
)
from keras_hsakd.layers import Logits
from keras_hsakd.logits import CLASSIFIERS, check_logits, without_softmax

LOGITS, FEATURES = "logits", "features"


class Classifier:
    """A functional model taken apart: what is in it, each looked for once.

    Args:
        model: A functional model from images to class logits, with auxiliary heads or
            without, see `keras_hsakd.heads`.

    Attributes:
        model: The model.
        name: Its name.

    Raises:
        ValueError: If its graph is not all that it computes.

    Example:
    >>> network = Classifier(keras_hsakd.models.create("resnet8", num_classes=10))
    >>> list(network.outputs), [tensor.shape for tensor in network.stages.values()]
    (['logits', 'aux_1', 'aux_2', 'aux_3'], \
[(None, 32, 32, 16), (None, 16, 16, 32), (None, 8, 8, 64)])
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.name = model.name

    @functools.cached_property
    def flat(self) -> keras.Model:
        """The model without models in it, of which all tensors below are."""
        return flatten(self.model)

    @property
    def images(self) -> keras.KerasTensor:
        """The images."""
        return self.flat.inputs[0]

    @functools.cached_property
    def outputs(self) -> dict[str, keras.KerasTensor]:
        """The class logits, and the joint logits of each auxiliary head, by name."""
        return _outputs(self.flat)

    @property
    def logits(self) -> keras.KerasTensor:
        """The class logits `(B, N)`; of a model without a classifier its output."""
        return self.outputs[LOGITS]

    @property
    def num_classes(self) -> int:
        """Number of classes `N`."""
        return self.logits.shape[-1]

    @functools.cached_property
    def path(self) -> list[keras.KerasTensor]:
        """The tensors that every path from the images to the logits goes through."""
        return bottlenecks(self.images, self.logits)

    @functools.cached_property
    def products(self) -> keras.KerasTensor:
        """What the layer with the class weights gives; what follows are its scales."""
        weighted = [x for x in self.path if has_kernel(operation_of(x))]
        return weighted[-1] if weighted else self.images

    @property
    def layer(self) -> keras.layers.Layer:
        """The layer with the class weights, a `Dense` or `Conv2D`."""
        layer = operation_of(self.products)
        return layer.layer if self.had_softmax else layer

    @property
    def had_softmax(self) -> bool:
        """Whether that layer computes a softmax, which was taken off."""
        return isinstance(operation_of(self.products), Logits)

    @property
    def dtype(self) -> str:
        """Dtype of logits: that of the weights, float32 at least."""
        return keras.backend.result_type(self.layer.variable_dtype, "float32")

    @functools.cached_property
    def features(self) -> keras.KerasTensor:
        """What the layer with the class weights takes."""
        sources = node_of(self.products).input_tensors
        return sources[0] if sources else self.images

    @functools.cached_property
    def calls(self) -> dict[str, list[keras.KerasTensor]]:
        """The outputs of layers by their names, one of each call."""
        found = {}
        for tensor in ancestors(self.outputs.values()):
            found.setdefault(operation_of(tensor).name, []).append(tensor)
        return found

    @property
    def layers(self) -> dict[str, keras.KerasTensor]:
        """The outputs of the layers that are called once, by their names."""
        return {name: each[0] for name, each in self.calls.items() if len(each) == 1}

    @functools.cached_property
    def backbone_layers(self) -> dict[str, keras.KerasTensor]:
        """The outputs of all layers up to the features, by their names."""
        return {operation_of(x).name: x for x in ancestors([self.features])}

    @functools.cached_property
    def feature_maps(self) -> list[keras.KerasTensor]:
        """The feature maps that every path goes through, before any pooling."""
        found = []
        trained = False
        for tensor in self.path:
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

    @functools.cached_property
    def stage_ends(self) -> list[keras.KerasTensor]:
        """The last feature map of each resolution, but that of a stem.

        Resolutions that differ by less than a third, as without padding, count as one.
        """
        stages = {}  # by the size that a stage begins with
        size = None
        for tensor in self.feature_maps:
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

    @functools.cached_property
    def stages(self) -> dict[str, keras.KerasTensor]:
        """The feature maps at the ends of stages, `"stage_1"` the first.

        In the zoo, whose layers are named by their stages, they are what the auxiliary
        heads are on; in other models, those of `stage_ends`.
        """
        named = {}
        for tensor in self.path:
            if found := re.match(r"stage(\d+)_", operation_of(tensor).name):
                named[f"stage_{found[1]}"] = tensor
        if not named and None not in self.images.shape[1:3]:
            ends = enumerate(self.stage_ends, start=1)
            named = {f"stage_{number}": tensor for number, tensor in ends}
        return named

    def tensor(self, name: str) -> keras.KerasTensor | None:
        """Returns an output, a stage's end, the features, or what a layer gives.

        Args:
            name: Of `outputs`, of `stages`, `"features"`, or of `layers`.
        """
        if name == FEATURES:
            return self.features
        return self.outputs.get(name, self.stages.get(name, self.layers.get(name)))

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Returns the shape of a tensor, see `tensor`."""
        outputs = _outputs(self.model)
        # For an output, a model within it may have a `call` of its own.
        found = outputs[name] if name in outputs else self.tensor(name)
        return tuple(found.shape)

    def computing(self, names: Collection[str]) -> keras.Model:
        """Returns a model of some tensors alone, a dict by name, sharing all layers.

        Args:
            names: At least one, see `tensor`.

        Returns:
            A functional `keras.Model`; the model itself where these are its outputs.
        """
        outputs = _outputs(self.model)
        if set(names) == set(outputs):
            return self.model
        if set(names) <= set(outputs):  # a model within it may have a `call` of its own
            check_functional(self.model)
            kept = {name: outputs[name] for name in names}
            return keras.Model(self.model.input, kept, name=self.name)
        kept = {name: self.tensor(name) for name in names}
        return keras.Model(self.flat.input, kept, name=self.name)


def _outputs(model):
    """Returns the outputs of a model by their names."""
    # A `Sequential` has its output as `output` only once it was called.
    output = getattr(model, "output", None)
    return output if isinstance(output, dict) else {LOGITS: model.outputs[0]}


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
    return _checked(without_softmax(flat))


def _checked(flat):
    """Returns a flat classifier, after its softmax was taken off, as one to learn of.

    Raises:
        ValueError: If it does not end in a layer of class weights, or in logits.
    """
    found = Classifier(flat)
    layer, classes = found.layer, found.logits.shape[-1]
    if not isinstance(layer, CLASSIFIERS) or found.products.shape[-1] != classes:
        raise ValueError(
            f"Expected the last layer with weights of `{found.name}` to be a Dense or "
            f"Conv2D layer of {classes} units. Received: {layer.name!r}"
        )
    if is_quantized(layer):
        raise ValueError(
            f"Expected the classifier of `{found.name}` as it was trained, to learn "
            f"from or copy; give heads before `quantize`. Received: '{layer.name}', "
            f"quantized to {layer.quantization_mode}"
        )
    check_logits(flat)
    dtype = keras.backend.standardize_dtype(found.logits.dtype)
    if dtype not in ("float16", "bfloat16"):
        return found
    logits = keras.layers.Activation("linear", dtype="float32", name="float32")(
        found.logits
    )
    return Classifier(keras.Model(found.images, logits, name=found.name))


def classifying(maps: keras.Model, num_classes: int) -> keras.Model:
    """Returns a model of feature maps with a classifier, sharing all layers.

    Args:
        maps: A functional model of one batch of images.
        num_classes: Number of classes `N`.
    """
    features = keras.layers.GlobalAveragePooling2D(name="logits_pool")(maps.output)
    logits = keras.layers.Dense(num_classes, name="logits")(features)
    return keras.Model(maps.input, logits, name=maps.name)
