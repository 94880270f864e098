"""Several networks as one teacher."""

import math
import numbers
from collections.abc import Sequence

import keras
from keras import ops

from keras_hsakd.distribution import run_on_rows
from keras_hsakd.heads import (
    Signature,
    check_counts,
    named_outputs,
    prepared,
    signature,
)
from keras_hsakd.suggestions import did_you_mean
from keras_hsakd.teachers.base import NetworkTeacher, Teacher


@keras.saving.register_keras_serializable("keras_hsakd")
class Ensemble(keras.layers.Layer, Teacher):
    """Networks that teach as one, by the means of their logits.

    `Distiller([first, second], student)` is the same with equal weights. The mean of
    logits is the geometric mean of the distributions, normalized; it needs no
    temperature, so that a `TeacherCache` can be written of it. Heads are averaged as
    the logits: the last one with the last ones, where a network has more.

    Each network has its own preprocessing and precision, and runs once a step.

    Args:
        networks: Two or more functional models with auxiliary heads, or as many plain
            classifiers, of the same classes and views.
        weights: A number above 0 for each network. Defaults to `None`, all alike.
        features: Name of the network that gives features, to terms that are on some.
            Defaults to `None`, the first.
        **kwargs: `name` of the `keras.layers.Layer`.

    Raises:
        ValueError: If the networks do not go together, or a weight or a name does not
            suit.

    Example:
    >>> first = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> second = keras_hsakd.models.create("wrn_10_1", num_classes=10)
    >>> teacher = Ensemble([first, second], weights=[2, 1])
    >>> sorted(teacher(np.zeros((1, 32, 32, 3))))
    ['aux_1', 'aux_2', 'aux_3', 'logits']
    >>> student = keras_hsakd.models.create("resnet14", num_classes=10)
    >>> distiller = keras_hsakd.Distiller(teacher, student)
    """

    def __init__(
        self,
        networks: Sequence[keras.Model],
        weights: Sequence[float] | None = None,
        features: str | None = None,
        **kwargs,
    ):
        # Each network casts its own images.
        super().__init__(trainable=False, autocast=False, **kwargs)
        if not isinstance(networks, (list, tuple)) or len(networks) < 2:
            raise ValueError(
                "Expected `networks` of an Ensemble to be a list of two or more. "
                f"Received: {networks!r}"
            )
        self.networks = [
            prepared(network, f"teacher {number}")
            for number, network in enumerate(networks, start=1)
        ]
        self._members = tuple(map(NetworkTeacher, self.networks))
        self._signature = _common(list(map(signature, self.networks)))
        self.features = features
        self._check_features()
        shares = _shares(weights, len(self.networks))
        # A variable, which is saved and part of the checksum of what teaches.
        self.shares = self.add_weight(
            shape=(len(shares),),
            initializer="ones",
            dtype="float32",
            trainable=False,
            name="shares",
        )
        self.shares.assign(shares)
        self.given_weights = None if weights is None else list(weights)
        self.built = True

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def classifier(self):
        names = [network.name for network in self.networks]
        number = 0 if self.features is None else names.index(self.features)
        return self._members[number].classifier

    def _check_features(self):
        names = [network.name for network in self.networks]
        if self.features is not None and names.count(self.features) != 1:
            raise ValueError(
                "Expected `features` to be the name of exactly one of the networks, "
                f"{names}. "
                f"Received: {self.features!r}{did_you_mean(self.features, names)}"
            )

    def needed(self, names):
        found, source = [], self.classifier
        for member in self._members:
            of_it = {self._own(member, n) for n in names if n in self.signature.outputs}
            if member.classifier is source:
                of_it |= set(names) - set(self.signature.outputs)
            found.append((member.classifier, of_it))
        return found

    def _own(self, member, name):
        """Returns a member's name of an output of the ensemble."""
        if name == "logits":
            return name
        heads = self.signature.heads
        own = member.signature.heads
        return own[len(own) - len(heads) + heads.index(name)]

    def targets(self, batch, in_step):
        def compute(images):
            return self._means(images, in_step)

        return run_on_rows(compute, batch["images"])

    def call(self, images, training=False):
        return self._means(images, lambda network: network)

    def _means(self, images, in_step):
        """Returns the means of logits and heads, and the features of one network."""
        found = {}
        for number, member in enumerate(self._members):
            outputs = named_outputs(in_step(member.classifier.model), images)
            own = {self._own(member, name): name for name in self.signature.outputs}
            for name, values in outputs.items():
                if name in own:
                    values = values * ops.cast(self.shares[number], values.dtype)
                    # Not `+`, for their precisions may differ.
                    found[own[name]] = ops.add(found.get(own[name], 0), values)
                elif name not in member.signature.outputs:
                    found[name] = values
        return found

    def get_config(self):
        return {
            "name": self.name,
            "networks": [
                keras.saving.serialize_keras_object(network)
                for network in self.networks
            ],
            "weights": self.given_weights,
            "features": self.features,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        networks = [
            keras.saving.deserialize_keras_object(network, custom_objects)
            for network in config["networks"]
        ]
        return cls(**{**config, "networks": networks})


def _shares(weights, count):
    """Returns weights that sum to one."""
    if weights is None:
        return [1 / count] * count
    if len(weights) != count or not all(
        isinstance(w, numbers.Real) and math.isfinite(w) and w > 0 for w in weights
    ):
        raise ValueError(
            f"Expected `weights` to be {count} numbers above 0, one for each network. "
            f"Received: {weights!r}"
        )
    return [weight / sum(weights) for weight in weights]


def _common(signatures):
    """Returns what several networks take and give together."""
    first = signatures[0]
    fewest = min(signatures, key=lambda each: len(each.heads))
    for each in signatures[1:]:
        check_counts(first, each, "the networks of an Ensemble")
    shape = []
    for edges in zip(*(each.image_shape for each in signatures), strict=True):
        known = {edge for edge in edges if edge is not None}
        if len(known) > 1:
            raise ValueError(
                "Expected the networks of an Ensemble to take images of the same "
                f"shape. Received: {[each.image_shape for each in signatures]}"
            )
        shape.append(known.pop() if known else None)
    name = "+".join(each.name for each in signatures)
    return Signature(name, tuple(shape), fewest.outputs)


def get(teacher, role: str = "teacher") -> Teacher:
    """Returns a teacher as it is, or makes one.

    Args:
        teacher: A `Teacher`, a network, or a list of networks.
        role: What an error calls it.

    Raises:
        ValueError: If a network does not map one batch of images to class logits.

    Example:
    >>> network = keras_hsakd.models.create("resnet8", num_classes=10)
    >>> get([network, network]).signature.name
    'resnet8+resnet8'
    """
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, (list, tuple)):
        return get(teacher[0], role) if len(teacher) == 1 else Ensemble(teacher)
    return NetworkTeacher(prepared(teacher, role))
