"""Mutual distillation of networks that learn together."""

from collections.abc import Sequence

import keras

from keras_hsakd.heads import named_outputs, output_names, prepared
from keras_hsakd.teachers import NetworkTeacher
from keras_hsakd.terms import CrossEntropy
from keras_hsakd.trainers.distillation import Distillation, check_pair, terms_at
from keras_hsakd.trainers.parts import Learner
from keras_hsakd.views import View


@keras.saving.register_keras_serializable("keras_hsakd")
class MutualDistiller(Distillation):
    """Trains networks that learn from labels and from each other (online HSSAKD).

    ```
    loss = sum_i CE(p_i(x), y) + sum_l mean_r CE(q_il(t_r(x)), 4 * y + r)
         + mean_{j != i} mean_r tau^2 KL(p_j(t_r(x)) || p_i(t_r(x)))
         + mean_{j != i} sum_l mean_r tau^2 KL(q_jl(t_r(x)) || q_il(t_r(x)))
    ```

    with `t_r(x)` the image under each of four rotations, `p_i` the class predictions of
    network `i`, and `q_il` the joint predictions of its auxiliary head `l`. No gradient
    flows into the network that teaches in a divergence. With two networks this is the
    paper's loss; with more, the divergences are averaged over the others, as in deep
    mutual learning. Networks without heads learn from the image itself, which leaves
    `CE(p_i(x), y) + mean_{j != i} tau^2 KL(p_j(x) || p_i(x))`: deep mutual learning.

    The terms and metrics are reported by network, counted from 1: `net_1_ce_loss`,
    `net_1_ce_aux_1`, `net_1_kl_main`, `net_1_kl_aux_1`, `net_1_accuracy` and so on.
    `evaluate` and `predict` see plain images and give the class logits of each network,
    `{"net_1": (B, N), ...}`; the validation loss is the sum of the networks'
    cross-entropies. `export` writes the first network without its heads; for another
    one, `keras_hsakd.strip_heads(distiller.networks[1]).export(...)`.

    Args:
        networks: Two or more functional models with auxiliary heads, or plain
            classifiers, of the same or different architecture, with as many heads and
            classes each. They must not share variables.
        temperature: The temperature `tau > 0` of the divergences. Defaults to `None`,
            3.
        views: One of `keras_hsakd.views.names()`, or a list of two or more functions
            on batches of images, the first of which leaves them as they are; as many
            as the heads are made for. Defaults to `"rotations"`, and without heads to
            the image alone.
        sampled_views: See `keras_hsakd.Distiller`. Defaults to `None`, all views.
        terms: The terms of the loss of each network, see `keras_hsakd.Distiller`; its
            teachers are the other networks. Defaults to `None`, those above at the
            `temperature`: `[CrossEntropy(), CrossEntropy(on="heads"), KL(3.0),
            KL(3.0, on="heads")]`.
        **kwargs: `name` and `dtype` of the `keras.Model`.

    Raises:
        ValueError: If there are fewer than two networks, heads differ in number,
            classes or image shapes differ, variables are shared, the views do not suit
            heads or images, a term needs what is not there, the temperature is not
            positive, or there are not as many views as are to be sampled.

    Example:
    >>> train, _ = keras_hsakd.data.load("digits", image_size=8, limit=16)
    >>> networks = [
    ...     keras_hsakd.models.create(name, 10, input_shape=(8, 8, 3))
    ...     for name in ("resnet8", "wrn_10_1")
    ... ]
    >>> distiller = keras_hsakd.MutualDistiller(networks)
    >>> distiller = distiller.compile("adam", metrics=["accuracy"])
    >>> history = distiller.fit(train, epochs=1, verbose=0)
    >>> [name for name in sorted(history.history) if "accuracy" in name]
    ['net_1_accuracy', 'net_2_accuracy']

    References: [Yang et al., 2022](https://doi.org/10.1109/TNNLS.2022.3186807) and the
    authors' implementation; [Zhang et al., 2018](https://arxiv.org/abs/1706.00384) for
    more than two networks.
    """

    def __init__(
        self,
        networks: Sequence[keras.Model],
        temperature: float | None = None,
        views: str | Sequence[View] | None = None,
        sampled_views: int | None = None,
        terms: Sequence | None = None,
        **kwargs,
    ):
        names = [f"net_{number}" for number in range(1, len(networks) + 1)]
        networks = [
            prepared(network, name)
            for name, network in zip(names, networks, strict=True)
        ]
        if len(networks) < 2:
            raise ValueError(
                "Expected `networks` to be two or more networks that teach each other. "
                f"Received: {len(networks)}"
            )
        teachers = list(map(NetworkTeacher, networks))
        for i, network in enumerate(networks):
            for j in range(i):
                check_pair(teachers[j], network, roles=(names[j], names[i]))
        counts = [len(output_names(network)) - 1 for network in networks]
        if len(set(counts)) > 1:
            raise ValueError(
                "Expected `networks` to have the same number of auxiliary heads each. "
                f"Received: {counts} in {[network.name for network in networks]}"
            )
        learners = [
            Learner(f"{name}_", network, tuple(t for t in teachers if t is not own))
            for name, network, own in zip(names, networks, teachers, strict=True)
        ]
        given, heads = terms is not None, counts[0] > 0
        terms = terms_at(temperature, terms, heads)
        if heads and not given:
            terms = [CrossEntropy(on="heads"), *terms]
        super().__init__(learners, terms, views, sampled_views=sampled_views, **kwargs)
        self.networks = networks

    def outputs_of(self, images, training=False):
        return {
            f"net_{number}": named_outputs(
                self.in_step(network) if training else network, images, training
            )
            for number, network in enumerate(self.networks, start=1)
        }

    def teachers_outputs(self, batch, outputs):
        return {
            f"{name}_": [outputs[other] for other in outputs if other != name]
            for name in outputs
        }

    def each(self, function, outputs):
        return {name: function(output) for name, output in outputs.items()}

    def by_network(self, outputs):
        return {f"{name}_": output for name, output in outputs.items()}

    def compile(self, *args, metrics=None, weighted_metrics=None, **kwargs):
        """Configures training, as the other trainers; metrics are of each network."""
        return super().compile(
            *args,
            metrics=self._of_each(metrics),
            weighted_metrics=self._of_each(weighted_metrics),
            **kwargs,
        )

    def _of_each(self, metrics):
        """Returns metrics by network, each a copy with a state of its own."""
        if metrics is None or isinstance(metrics, dict):
            return metrics
        metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
        serialize = keras.saving.serialize_keras_object
        deserialize = keras.saving.deserialize_keras_object
        return {
            f"net_{number}": [
                deserialize(serialize(metric))
                if isinstance(metric, keras.metrics.Metric)
                else metric
                for metric in metrics
            ]
            for number in range(1, len(self.networks) + 1)
        }

    def get_config(self):
        return {
            **super().get_config(),
            "networks": [
                keras.saving.serialize_keras_object(network)
                for network in self.networks
            ],
        }
