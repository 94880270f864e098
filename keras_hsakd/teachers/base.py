"""Who a network learns from: what it gives, and what a step of training asks of it."""

from collections.abc import Callable, Collection, Sequence

import keras

from keras_hsakd.classifier import Classifier
from keras_hsakd.distribution import run_on_rows
from keras_hsakd.heads import Signature, named_outputs, signature


class Teacher:
    """Base class of a network, several networks, or a network's cached outputs.

    Attributes:
        networks: The networks whose outputs it gives; their weights never change.
        cache: Where its outputs are read from with the images; `None` where networks
            compute them.
    """

    networks: Sequence[keras.Model] = ()
    cache = None

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        raise NotImplementedError

    @property
    def classifier(self) -> Classifier:
        """The network whose features it gives.

        Raises:
            ValueError: If it gives none.
        """
        raise NotImplementedError

    @property
    def weights(self) -> list:
        """All that decides on its outputs, by whose checksum a cache knows it."""
        return []

    @property
    def variables(self) -> list:
        """These, and the states of its layers."""
        return []

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Returns the shape of an output, or of features, see `Classifier.tensor`."""
        if name in self.signature.outputs:
            return (None, self.signature.outputs[name])
        return self.classifier.shape(name)

    def checked_views(self, views):
        """Returns views, or else those that it gives its outputs for.

        Raises:
            ValueError: If it has no outputs for these views.
        """
        return views

    def needed(self, names: Collection[str]) -> list[tuple[Classifier, set[str]]]:
        """Returns its networks, each with the names of what it must compute.

        Args:
            names: What is asked of it.
        """
        return []

    def targets(self, batch: dict, in_step: Callable) -> dict:
        """Returns what it gives for a batch, by name.

        Args:
            batch: The batch of a step: `"images"`, all rows of views.
            in_step: Function from a network to the one that computes what is needed.
        """
        raise NotImplementedError

    def rows(self, data: dict) -> dict:
        """Returns what it adds to the batch of a step, of what the data have."""
        return {}


class NetworkTeacher(Teacher):
    """A network as a teacher.

    Args:
        network: A functional model with auxiliary heads, or a plain classifier.
    """

    def __init__(self, network: keras.Model):
        self.networks = (network,)
        self._classifier = Classifier(network)

    @property
    def signature(self) -> Signature:
        return signature(self._classifier.model)

    @property
    def classifier(self) -> Classifier:
        return self._classifier

    @property
    def weights(self):
        return self._classifier.model.weights

    @property
    def variables(self):
        return self._classifier.model.variables

    def needed(self, names):
        return [(self._classifier, set(names))]

    def targets(self, batch, in_step):
        network = in_step(self._classifier.model)
        return run_on_rows(lambda rows: named_outputs(network, rows), batch["images"])
