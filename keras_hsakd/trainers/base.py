"""What the trainers have in common: views of images, metrics, checks, saving."""

import contextlib

import keras
from keras import ops

from keras_hsakd.distribution import (
    loss_of_replica,
    mean_of_rows,
    num_replicas,
    run_on_rows,
)
from keras_hsakd.heads import is_plain, output_names, strip_heads
from keras_hsakd.ops import (
    cross_entropy,
    head_accuracies,
    joint_labels,
    standardized_labels,
    transformed_views,
    untransformed,
)
from keras_hsakd.trainers import checks
from keras_hsakd.trainers.fitting import Fitting, dtype_policy
from keras_hsakd.views import View, check_suit
from keras_hsakd.views import get as get_views


class HeadsTrainer(Fitting, keras.Model):
    """Base class of the trainers of networks with auxiliary heads.

    A plain classifier is the case of no heads and one view, the image itself.

    `train_step` turns a batch into its views and hands over to Keras' own step,
    so that loss scaling, gradient accumulation, `steps_per_execution`, compilation and
    distribution strategies keep working. A subclass says what is trained:

    - `network`: the network with heads that is trained, evaluated and exported;
    - `outputs_of(images, training)`: its dict of outputs;
    - `view_terms(images, labels, outputs)`: the terms of the loss on the views,
      beside the cross-entropy of the classes (`ce_loss`) on the images themselves;
    - `each` and `by_network`, where several networks are trained.

    The loss is the weighted sum of the terms, and each term is a metric of its own.

    Args:
        networks: Dict from the prefix of its metrics to each network that is trained.
        view_terms: Names of the terms of the loss on the views.
        views: See `keras_hsakd.views.get`. By default those that suit the networks:
            `"rotations"`, or for plain classifiers the image alone.
        frozen: Variables that are not trained, whatever their own flags say.
        **kwargs: `name`, `dtype` and `trainable` of the `keras.Model`. The dtype policy
            defaults to the network's, which decides on loss scaling.
    """

    def __init__(self, networks, view_terms, views, frozen=(), **kwargs):
        if views is None and not any(map(is_plain, networks.values())):
            views = "rotations"
        functions = get_views(views)
        for network in networks.values():
            checks.check_network(network)
            check_suit(functions, network, network.input_shape[1:])
        kwargs.setdefault("dtype", dtype_policy(next(iter(networks.values()))))
        # The networks cast their own inputs, each by its own policy.
        super().__init__(autocast=False, **kwargs)
        self.frozen_ids = frozenset(id(variable) for variable in frozen)
        self.views = views if views is None or isinstance(views, str) else functions
        self._evaluating = False
        self._evaluates_heads = False
        self.head_metrics = False
        self.loss_weights = {}
        image_terms = [f"{prefix}ce_loss" for prefix in networks]
        self._term_metrics = {
            name: keras.metrics.Mean(name) for name in (*image_terms, *view_terms)
        }
        self._head_metrics = {
            name: keras.metrics.Mean(name)
            for prefix, network in networks.items()
            for head in output_names(network)[1:]
            for name in _head_metric_names(prefix, head).values()
        }
        self.built = True

    @property
    def network(self) -> keras.Model:
        """The network with heads that is trained, evaluated and exported."""
        raise NotImplementedError

    def outputs_of(self, images, training=False):
        """Returns the network's dict of outputs."""
        raise NotImplementedError

    @property
    def view_functions(self) -> tuple[View, ...]:
        """The functions that make the views of a batch of images."""
        return get_views(self.views)

    @property
    def num_views(self) -> int:
        """The number of views of each image."""
        return len(self.view_functions)

    def view_terms(self, images, labels, outputs):
        """Returns the terms of the loss on the views, each with one value a row."""
        raise NotImplementedError

    def each(self, function, outputs):
        """Returns what a function makes of the outputs of each network."""
        return function(outputs)

    def by_network(self, outputs):
        """Returns outputs by the prefix of each network's metrics."""
        return {"": outputs}

    # Variables. A frozen network keeps its own `trainable` flags, so that it leaves
    # the trainer as it came.

    @property
    def trainable_variables(self):
        return [v for v in super().trainable_variables if id(v) not in self.frozen_ids]

    @property
    def non_trainable_variables(self):
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def trainable_weights(self):
        return [v for v in super().trainable_weights if id(v) not in self.frozen_ids]

    @property
    def non_trainable_weights(self):
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    # Training.

    @property
    def term_names(self) -> list[str]:
        """Names of the terms of the loss among the logs."""
        return list(self._term_metrics)

    def compile(
        self,
        optimizer="rmsprop",
        *,
        metrics=None,
        weighted_metrics=None,
        head_metrics: bool = False,
        loss_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        """Configures training; the losses are the method's own.

        Args:
            optimizer: See `keras.Model.compile`.
            metrics: Metrics of the class logits on plain images, for example
                `["accuracy"]`.
            weighted_metrics: The same, weighted by `sample_weight`; in training, images
                without a label weigh nothing.
            head_metrics: Whether to also report the accuracies of each head on the
                views, joint (`aux_1_joint_accuracy`) and of the class
                (`aux_1_class_accuracy`), in training and validation. Validation then
                takes as many times as long as there are views. Defaults to `False`.
            loss_weights: Weights of terms of the loss by their names, for example
                `{"kl_main": 0.5, "kl_aux_1": 0}`; a term is reported without its
                weight. Defaults to 1 for each, which is the method.
            **kwargs: Other arguments of `keras.Model.compile`: `jit_compile`,
                `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Returns:
            The model, so that `.fit(...)` can follow.

        Raises:
            ValueError: If a loss is given, a weight for a term that does not exist, or
                `head_metrics` of a network without heads.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError(
                f"Expected no `loss`: {type(self).__name__} has the losses of the "
                "method. Received: a value for `loss`"
            )
        self._check_heads("head_metrics", head_metrics)
        loss_weights = dict(loss_weights or {})
        for name, weight in loss_weights.items():
            if name not in self._term_metrics or not 0 <= weight < float("inf"):
                raise ValueError(
                    "Expected `loss_weights` to give terms of the loss weights of 0 or "
                    f"more; the terms are {list(self._term_metrics)}. "
                    f"Received: {name!r}: {weight}"
                )
        super().compile(
            optimizer=optimizer,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )
        self.head_metrics = bool(head_metrics)
        self.loss_weights = loss_weights
        # As text: a list of metrics would be tracked a second time.
        self._unweighted_metrics = repr(metrics) if metrics else ""
        return self

    def check_batch(self, images, labels, training=True):
        super().check_batch(images, labels, training)
        if training or self.head_metrics or self._evaluates_heads:
            check_suit(self.view_functions, self.network, images.shape[1:])

    def check_unlabeled(self, class_weight):
        super().check_unlabeled(class_weight)
        if self._unweighted_metrics:
            raise ValueError(
                f"Expected `weighted_metrics={self._unweighted_metrics}` in `compile`, "
                "which leave out images without a label. "
                f"Received: metrics={self._unweighted_metrics}"
            )

    def train_step(self, *args):
        # TensorFlow calls train_step(data), JAX train_step(state, data).
        *state, data = args
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        views = transformed_views(images, self.view_functions)
        return super().train_step(*state, (views, labels, sample_weight))

    def call(self, images, training=False):
        if training:  # `train_step` has made the views
            return self.outputs_of(images, training=True)
        return run_on_rows(self._evaluated, images)

    def _evaluated(self, images):
        if self._evaluates_heads:
            return self.outputs_of(transformed_views(images, self.view_functions))
        return self.each(lambda outputs: outputs["logits"], self.outputs_of(images))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        y, suit = self.suited(y, training)
        labels = standardized_labels(y)
        labeled = self._labeled(labels) if training else None
        known = labels if labeled is None else ops.maximum(labels, 0)
        # Before another network runs: what its layers add is not to be trained on.
        added = [ops.mean(loss) for loss in self.losses] if training else []
        image_terms = {
            f"{prefix}ce_loss": cross_entropy(known, self._image_logits(outputs))
            for prefix, outputs in self.by_network(y_pred).items()
        }
        view_terms = self.view_terms(x, labels, y_pred) if training else {}
        total = sum(added)
        for rows, terms, counted in (
            (1, image_terms, labeled),
            (self.num_views, view_terms, None),
        ):
            for name, values in terms.items():
                for weight in (sample_weight, counted):
                    if weight is not None:
                        values *= ops.cast(ops.repeat(weight, rows), values.dtype)
                if training:
                    self._term_metrics[name].update_state(values, counted)
                    values *= self.loss_weights.get(name, 1.0)
                total += mean_of_rows(values)
        if training:
            loss = loss_of_replica(total, ops.shape(labels)[0])
        else:
            loss = total / num_replicas()  # which Keras undoes for the log
        return checks.marked(loss, suit)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, _ = self.suited(y, training=not self._evaluating)
        labels = standardized_labels(y)
        labeled = None if self._evaluating else self._labeled(labels)
        if self._reports_heads():
            for prefix, outputs in self.by_network(y_pred).items():
                if isinstance(outputs, dict):
                    self._update_head_metrics(prefix, labels, outputs, labeled)
        if labeled is not None:
            y = ops.maximum(y, 0)  # of which those without a label weigh nothing
            if sample_weight is None:
                sample_weight = labeled
            else:
                sample_weight = ops.reshape(sample_weight, (-1,))
                sample_weight *= ops.cast(labeled, sample_weight.dtype)
        return super().compute_metrics(
            x,
            self.each(lambda outputs: y, y_pred),
            self.each(self._image_logits, y_pred),
            sample_weight
            if sample_weight is None
            else self.each(lambda outputs: sample_weight, y_pred),
        )

    def _labeled(self, labels):
        """Returns 1 for each image with a label, 0 without; None where all have one."""
        if not self.takes_unlabeled or len(labels.shape) != 1:
            return None
        return ops.cast(labels >= 0, "float32")

    def _update_head_metrics(self, prefix, labels, outputs, labeled):
        joint = joint_labels(labels, self.num_views)
        weights = None if labeled is None else ops.repeat(labeled, self.num_views)
        for head in outputs.keys() - {"logits"}:
            hits = head_accuracies(joint, outputs[head], self.num_views)
            for kind, name in _head_metric_names(prefix, head).items():
                self._head_metrics[name].update_state(hits[kind], weights)

    def _image_logits(self, outputs):
        """Returns the class logits of the images themselves."""
        if not isinstance(outputs, dict):
            return outputs
        return untransformed(outputs["logits"], self.num_views)

    def get_metrics_result(self):
        results = super().get_metrics_result()
        if self._evaluating:
            results = {k: v for k, v in results.items() if k not in self._term_metrics}
        if not self._reports_heads():
            results = {k: v for k, v in results.items() if k not in self._head_metrics}
        return results

    def _reports_heads(self):
        return self._evaluates_heads if self._evaluating else self.head_metrics

    # Evaluation.

    def evaluate(self, *args, heads: bool | None = None, **kwargs):
        """Evaluates the class logits on plain images, as `keras.Model.evaluate`.

        The loss is the cross-entropy of the class logits.

        Args:
            *args: Arguments of `keras.Model.evaluate`.
            heads: Whether to add the accuracies of each head on the views.
                Defaults to `head_metrics` of `compile`.
            **kwargs: Arguments of `keras.Model.evaluate`.

        Returns:
            As `keras.Model.evaluate`; with `return_dict=True`, a dict by name.

        Raises:
            ValueError: If `heads` is asked of a network that has none.
        """
        self._check_heads("heads", heads)
        with self._evaluation(self.head_metrics if heads is None else heads):
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        with self._evaluation(self.head_metrics):
            return super().test_on_batch(*args, **kwargs)

    def make_test_function(self, force=False):
        # The step is traced for one of the two kinds of evaluation.
        changed = getattr(self, "_traced_heads", None) != self._evaluates_heads
        self._traced_heads = self._evaluates_heads
        return super().make_test_function(force=force or changed)

    def _check_heads(self, argument, value):
        if value and not self._head_metrics:
            raise ValueError(
                f"Expected a network with auxiliary heads for `{argument}`. "
                f"Received: {argument}={value} for `{self.network.name}`, which has "
                "none"
            )

    @contextlib.contextmanager
    def _evaluation(self, heads):
        self._evaluating, self._evaluates_heads = True, heads
        try:
            yield
        finally:
            self._evaluating, self._evaluates_heads = False, False

    # Saving.

    def get_config(self):
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "views": [keras.saving.serialize_keras_object(v) for v in self.views]
            if isinstance(self.views, tuple)
            else self.views,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(value):
            if isinstance(value, list):
                return [deserialize(item) for item in value]
            if isinstance(value, dict):
                return keras.saving.deserialize_keras_object(value, custom_objects)
            return value

        return cls(**{key: deserialize(value) for key, value in config.items()})

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {
            **config,
            "head_metrics": self.head_metrics,
            "loss_weights": dict(self.loss_weights),
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def export(self, filepath, *args, **kwargs):
        """Exports the trained network without heads, as `keras.Model.export`."""
        plain = strip_heads(self.network)
        plain(plain.inputs[0])  # Keras exports no ONNX of a model that was never called
        return plain.export(filepath, *args, **kwargs)


def _head_metric_names(prefix, head):
    return {kind: f"{prefix}{head}_{kind}_accuracy" for kind in ("joint", "class")}
