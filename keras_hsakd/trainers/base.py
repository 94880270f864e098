"""What the trainers have in common: views of images, metrics, checks, saving."""

import contextlib
import types

import keras
from keras import ops

from keras_hsakd.distribution import (
    loss_of_replica,
    mean_of_rows,
    num_replicas,
    run_on_rows,
    train_on_rows,
)
from keras_hsakd.heads import is_plain, output_names, strip_heads, with_outputs
from keras_hsakd.ops import (
    cross_entropy,
    head_accuracies,
    joint_labels,
    sampled_view_weights,
    sampled_views,
    seen_rows,
    smoothed_labels,
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
    - `view_terms(batch, labels, outputs)`: the terms of the loss on the views,
      beside the cross-entropy of the classes (`ce_loss`) on the images themselves;
    - `each` and `by_network`, where several networks are trained;
    - `needed_outputs`, where outputs are needed that no term trains.

    The loss is the weighted sum of the terms, and each term is a metric of its own.
    Terms of weight 0 are not among them: what they alone need is not computed.

    Within a step, a batch is a dict: `"images"` are all rows of views, `"targets"` the
    outputs of a cached teacher for them, and where views are sampled, `"seen"` is the
    table of `keras_hsakd.ops.sampled_views`.

    Args:
        networks: Dict from the prefix of its metrics to each network that is trained.
        view_terms: Dict from the name of each term of the loss on the views to what it
            trains: prefix of a network, name of its output.
        views: See `keras_hsakd.views.get`. By default those that suit the networks:
            `"rotations"`, or for plain classifiers the image alone.
        sampled_views: Number of views of each image that a step sees, from 2 to all.
            Defaults to `None`, all of them.
        frozen: Variables that are not trained, whatever their own flags say.
        **kwargs: `name`, `dtype` and `trainable` of the `keras.Model`. The dtype policy
            defaults to the network's, which decides on loss scaling.
    """

    _idle_ids: frozenset[int] = frozenset()  # of what no term of the loss trains

    def __init__(
        self, networks, view_terms, views, sampled_views=None, frozen=(), **kwargs
    ):
        if views is None and not any(map(is_plain, networks.values())):
            views = "rotations"
        functions = get_views(views)
        for network in networks.values():
            checks.check_network(network)
            check_suit(functions, network, network.input_shape[1:])
        _check_sampled(sampled_views, len(functions))
        kwargs.setdefault("dtype", dtype_policy(*networks.values()))
        # The networks cast their own inputs, each by its own policy.
        super().__init__(autocast=False, **kwargs)
        self.frozen_ids = frozenset(id(variable) for variable in frozen)
        self.views = views if views is None or isinstance(views, str) else functions
        self.sampled_views = sampled_views
        if self._samples:
            self._seeds = keras.random.SeedGenerator()
        self._evaluating = False
        self._evaluates_heads = False
        self.head_metrics = False
        self.loss_weights = {}
        self.label_smoothing = 0.0
        image_terms = {f"{prefix}ce_loss": (prefix, "logits") for prefix in networks}
        self._trained_by = {**image_terms, **view_terms}
        self._term_metrics = {
            name: keras.metrics.Mean(name) for name in self._trained_by
        }
        # In no dict, whose layers Keras would track and save a second time.
        self._networks = types.MappingProxyType(dict(networks))
        self._in_step = types.MappingProxyType({})
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

    @property
    def num_seen(self) -> int:
        """The number of views of each image that a step of training sees."""
        return self.sampled_views or self.num_views

    @property
    def _samples(self):
        return self.num_seen < self.num_views

    def view_terms(self, batch, labels, outputs):
        """Returns the terms of the loss on the views, each with one value a row."""
        raise NotImplementedError

    def joint_labels_of(self, batch, labels):
        """Returns the joint labels of a batch's rows of views."""
        joint = joint_labels(labels, self.num_views)
        return seen_rows(joint, _seen(batch), self.num_views)

    def weighs(self, term) -> bool:
        """Returns whether a term of the loss has another weight than 0."""
        return self.loss_weights.get(term, 1.0) > 0

    def loss_weight(self, term):
        """Returns the weight of a term of the loss, as a number or a tensor."""
        return self.loss_weights.get(term, 1.0)

    def in_step(self, network) -> keras.Model:
        """Returns a network without the outputs that a step of training can spare."""
        return self._in_step.get(id(network), network)

    def needed_outputs(self, trained):
        """Returns pairs of a network and names of its outputs that a step needs.

        Args:
            trained: Dict from each network's prefix to its outputs that terms train.
        """
        # Metrics are of the class logits, and those of heads of all of them.
        return [
            (
                network,
                output_names(network)
                if self.head_metrics
                else {"logits", *trained[prefix]},
            )
            for prefix, network in self._networks.items()
        ]

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
        return self._trained(super().trainable_variables)

    @property
    def non_trainable_variables(self):
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def trainable_weights(self):
        return self._trained(super().trainable_weights)

    @property
    def non_trainable_weights(self):
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    def _trained(self, variables):
        still = self.frozen_ids | self._idle_ids
        return [v for v in variables if id(v) not in still]

    # Saving the state of the views that are drawn, which Keras does not.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self._samples:
            store["sampled_views"] = ops.convert_to_numpy(self._seeds.state)

    def load_own_variables(self, store):
        saved = {name: store[name] for name in sorted(store.keys())}
        drawn = saved.pop("sampled_views", None)
        if self._samples and drawn is not None:
            self._seeds.state.assign(drawn)
        super().load_own_variables(saved)

    # Training.

    @property
    def term_names(self) -> list[str]:
        """Names of the terms of the loss among the logs."""
        return [name for name in self._term_metrics if self.weighs(name)]

    def compile(
        self,
        optimizer="rmsprop",
        *,
        metrics=None,
        weighted_metrics=None,
        head_metrics: bool = False,
        loss_weights: dict[str, float] | None = None,
        label_smoothing: float = 0.0,
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
                weight. A term of weight 0 is left out: heads that no other term needs
                are not computed, and those of the network that is trained keep all
                their variables; with `head_metrics` they are computed, and not trained.
                Defaults to 1 for each, which is the method.
            label_smoothing: Probability, from 0 to below 1, that is taken from the
                label of an image and spread over all classes, in `ce_loss` while
                training. The joint labels of the heads keep all of it, so do the
                labels of divergences, and evaluation measures the labels as they are.
                Defaults to 0.
            **kwargs: Other arguments of `keras.Model.compile`: `jit_compile`,
                `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Returns:
            The model, so that `.fit(...)` can follow.

        Raises:
            ValueError: If a loss is given, a weight for a term that does not exist,
                weights that leave nothing to train, `head_metrics` of a network
                without heads, or a `label_smoothing` out of range.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError(
                f"Expected no `loss`: {type(self).__name__} has the losses of the "
                "method. Received: a value for `loss`"
            )
        self._check_heads("head_metrics", head_metrics)
        checks.check_label_smoothing(label_smoothing)
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
        self.label_smoothing = label_smoothing
        self._choose_outputs()
        # As text: a list of metrics would be tracked a second time.
        self._unweighted_metrics = repr(metrics) if metrics else ""
        return self

    def _choose_outputs(self):
        """Leaves out of the steps what terms of weight 0 alone would need."""
        trained = {prefix: set() for prefix in self._networks}
        for term, (prefix, output) in self._trained_by.items():
            if self.weighs(term):
                trained[prefix].add(output)
        idle = set()
        for prefix, network in self._networks.items():
            idle |= {id(variable) for variable in network.variables}
            if trained[prefix]:
                learning = with_outputs(network, trained[prefix])
                idle -= {id(variable) for variable in learning.variables}
        self._idle_ids = frozenset(idle)
        if idle and not self.trainable_variables:
            raise ValueError(
                "Expected `loss_weights` to leave a term that something is trained on."
                f" Received: loss_weights={self.loss_weights}"
            )
        self._in_step = types.MappingProxyType(
            {
                id(network): with_outputs(network, names)
                for network, names in self.needed_outputs(trained)
                if names
            }
        )

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
        x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        batch = self.rows_of(x)
        if self._samples:
            seen, state = self._drawn_views(ops.shape(labels)[0], state)
            batch = keras.tree.map_structure(
                lambda rows: seen_rows(rows, seen, self.num_views), batch
            )
            batch["seen"] = seen
        return super().train_step(*state, (batch, labels, sample_weight))

    def rows_of(self, x):
        """Returns what a step runs on: a dict of `images`, the rows of all views."""
        return {"images": transformed_views(self.augmented(x), self.view_functions)}

    def _drawn_views(self, count, state):
        """Returns which views of images a step sees, and its state after the draw."""
        shape = (count, self.num_views - 1)
        if not state:
            numbers = keras.random.uniform(shape, dtype="float32", seed=self._seeds)
            return sampled_views(numbers, self.num_seen), state
        # On JAX, the state of a step is an argument of it.
        ((trained, others, *rest),) = state
        variables = self.non_trainable_variables
        with keras.StatelessScope(zip(variables, others, strict=True)) as scope:
            seen, _ = self._drawn_views(count, [])
        others = [scope.get_current_value(variable) for variable in variables]
        return seen, [(trained, others, *rest)]

    def call(self, images, training=False):
        if isinstance(images, dict):  # a batch of a step, or of images and targets
            images = images["images"]
        if training:  # `train_step` has made the views
            return train_on_rows(
                lambda rows: self.outputs_of(rows, training=True), images, self.num_seen
            )
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
        if training and self.label_smoothing:
            classes = checks.num_classes(self.network)
            known = smoothed_labels(known, classes, self.label_smoothing)
        # Before another network runs: what its layers add is not to be trained on.
        added = [ops.mean(loss) for loss in self.losses] if training else []
        image_terms = {
            f"{prefix}ce_loss": cross_entropy(
                known, self._image_logits(outputs, _seen(x))
            )
            for prefix, outputs in self.by_network(y_pred).items()
            if not training or self.weighs(f"{prefix}ce_loss")
        }
        view_terms = self.view_terms(x, labels, y_pred) if training else {}
        total = sum(added)
        for rows, terms, counted, seen in (
            (1, image_terms, labeled, None),
            (self.num_seen, view_terms, None, _seen(x)),
        ):
            for name, values in terms.items():
                values = self._weighed(values, seen)
                for weight in (sample_weight, counted):
                    if weight is not None:
                        values *= ops.cast(ops.repeat(weight, rows), values.dtype)
                if training:
                    self._term_metrics[name].update_state(values, counted)
                    values *= ops.cast(self.loss_weight(name), values.dtype)
                total += mean_of_rows(values)
        if training:
            loss = loss_of_replica(total, ops.shape(labels)[0])
        else:
            loss = total / num_replicas()  # which Keras undoes for the log
        return checks.marked(loss, suit)

    def _weighed(self, values, seen):
        """Returns values of rows of views, each weighed for those it stands for."""
        if seen is None:
            return values
        weights = sampled_view_weights(self.num_views, self.num_seen)
        values = ops.reshape(values, (-1, self.num_seen))
        return ops.reshape(values * ops.cast(weights, values.dtype), (-1,))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, _ = self.suited(y, training=not self._evaluating)
        labels, seen = standardized_labels(y), _seen(x)
        labeled = None if self._evaluating else self._labeled(labels)
        if self._reports_heads():
            for prefix, outputs in self.by_network(y_pred).items():
                if isinstance(outputs, dict):
                    self._update_head_metrics(prefix, x, labels, outputs, labeled)
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
            self.each(lambda outputs: self._image_logits(outputs, seen), y_pred),
            sample_weight
            if sample_weight is None
            else self.each(lambda outputs: sample_weight, y_pred),
        )

    def _labeled(self, labels):
        """Returns 1 for each image with a label, 0 without; None where all have one."""
        if not self.takes_unlabeled or len(labels.shape) != 1:
            return None
        return ops.cast(labels >= 0, "float32")

    def _update_head_metrics(self, prefix, batch, labels, outputs, labeled):
        seen = _seen(batch)
        joint = self.joint_labels_of(batch, labels)
        rows = self._rows_of_an_image(seen)
        weights = None if labeled is None else ops.repeat(labeled, rows)
        for head in outputs.keys() - {"logits"}:
            hits = head_accuracies(joint, outputs[head], self.num_views)
            for kind, name in _head_metric_names(prefix, head).items():
                values = self._weighed(ops.cast(hits[kind], "float32"), seen)
                self._head_metrics[name].update_state(values, weights)

    def _image_logits(self, outputs, seen):
        """Returns the class logits of the images themselves."""
        if not isinstance(outputs, dict):
            return outputs
        return untransformed(outputs["logits"], self._rows_of_an_image(seen))

    def _rows_of_an_image(self, seen):
        return self.num_views if seen is None else self.num_seen

    def get_metrics_result(self):
        results = super().get_metrics_result()
        if self._evaluating:
            left_out = self._term_metrics.keys()
        else:
            left_out = self._term_metrics.keys() - set(self.term_names)
        results = {k: v for k, v in results.items() if k not in left_out}
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
            "sampled_views": self.sampled_views,
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
            "label_smoothing": self.label_smoothing,
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def export(self, filepath, *args, **kwargs):
        """Exports the trained network without heads, as `keras.Model.export`."""
        plain = strip_heads(self.network)
        plain(plain.inputs[0])  # Keras exports no ONNX of a model that was never called
        return plain.export(filepath, *args, **kwargs)


def _seen(batch):
    """Returns which views a batch of a step has; None where it has all."""
    return batch.get("seen") if isinstance(batch, dict) else None


def _check_sampled(sampled, num_views):
    if sampled is None:
        return
    if num_views == 1:
        raise ValueError(
            "Expected no `sampled_views` for networks without auxiliary heads, which "
            f"see the image alone. Received: sampled_views={sampled}"
        )
    if sampled not in range(2, num_views + 1):
        raise ValueError(
            f"Expected `sampled_views` to be a number from 2 to {num_views}, that of "
            f"all views. Received: sampled_views={sampled}"
        )


def _head_metric_names(prefix, head):
    return {kind: f"{prefix}{head}_{kind}_accuracy" for kind in ("joint", "class")}
