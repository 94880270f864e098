"""What the trainers have in common: views of images, and the terms of the loss."""

import contextlib
import functools
import types
from collections.abc import Sequence

import keras
from keras import ops

from keras_hsakd.distribution import (
    check_in_scope,
    loss_of_replica,
    losses_of_replica,
    mean_of_rows,
    num_replicas,
    run_on_rows,
    train_on_rows,
)
from keras_hsakd.heads import is_plain, named_outputs, output_names
from keras_hsakd.ops import (
    cross_entropy,
    joint_labels,
    sampled_views,
    seen_rows,
    standardized_labels,
    transformed_views,
    untransformed,
)
from keras_hsakd.terms import Term
from keras_hsakd.trainers import checks
from keras_hsakd.trainers.fitting import FitCallback, Fitting, dtype_policy
from keras_hsakd.trainers.metrics import Metrics
from keras_hsakd.trainers.parts import Learner, as_terms, parts_of
from keras_hsakd.trainers.saving import Saving
from keras_hsakd.views import View, check_suit
from keras_hsakd.views import get as get_views


def read_only(function) -> property:
    """Returns a property that says what to do where somebody sets it."""

    def refuse(self, value):
        raise AttributeError(
            f"Expected `{function.__name__}` to stay as it is: a compiled step would "
            f"not see the change. Make another {type(self).__name__} of the same "
            f"networks; the `warmup` of a term changes its weight while training. "
            f"Received: {function.__name__}={value!r}"
        )

    return property(function, refuse, doc=function.__doc__)


class Trainer(Metrics, Saving, Fitting, keras.Model):
    """Base class of the trainers.

    `train_step` turns a batch into its views and hands over to Keras' own step, so that
    loss scaling, gradient accumulation, `steps_per_execution`, compilation and
    distribution strategies keep working. The loss is a weighted sum of terms
    (`compute_loss`), and each term is a metric of its own. Terms of weight 0 are left
    out: what they alone need is not computed.

    A trainer differs from another in its networks and its list of terms. A subclass may
    also say what its networks give (`outputs_of`) and who teaches them
    (`teachers_outputs`).

    Within a step, a batch is a dict: `"images"` are all rows of views, `"targets"` the
    outputs of a cached teacher for them, and where views are sampled, `"seen"` is the
    table of `keras_hsakd.ops.sampled_views`.

    Args:
        learners: The networks that are trained; the first is evaluated and exported.
        terms: The terms of the loss of each, see `keras_hsakd.terms.get`.
        views: See `keras_hsakd.views.get`. By default those that suit the networks:
            `"rotations"`, or for plain classifiers the image alone.
        sampled_views: Number of views of each image that a step sees, from 2 to all.
            Defaults to `None`, all of them.
        frozen: Variables that are not trained, whatever their own flags say.
        **kwargs: `name`, `dtype` and `trainable` of the `keras.Model`. The dtype policy
            defaults to the network's, which decides on loss scaling.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        terms: Sequence,
        views: str | Sequence[View] | None,
        sampled_views: int | None = None,
        frozen=(),
        **kwargs,
    ):
        networks = [learner.network for learner in learners]
        if views is None and not any(map(is_plain, networks)):
            views = "rotations"
        functions = get_views(views)
        for learner in learners:
            check_suit(functions, learner.network, learner.network.input_shape[1:])
            for network in (
                learner.network,
                *(each for teacher in learner.teachers for each in teacher.networks),
            ):
                check_in_scope(network)
        _check_sampled(sampled_views, len(functions))
        terms = as_terms(terms)
        parts = [part for learner in learners for part in parts_of(terms, learner)]
        _check_parts(parts, sampled_views)
        kwargs.setdefault("dtype", dtype_policy(*networks))
        # The networks cast their own inputs.
        super().__init__(autocast=False, **kwargs)
        self.frozen_ids = frozenset(id(variable) for variable in frozen)
        self.views = views if views is None or isinstance(views, str) else functions
        self.sampled_views = sampled_views
        if self._samples:
            self._seeds = keras.random.SeedGenerator()
        # In no dict, whose layers Keras would track and save a second time.
        self._learners = types.MappingProxyType({x.prefix: x for x in learners})
        # Those on the images first, of all networks.
        self._parts = tuple(
            sorted(
                (part for part in parts if part.term.weight > 0),
                key=lambda part: part.on_views,
            )
        )
        self._idle_ids = self._untrained()
        self._make_layers()
        self._in_step = types.MappingProxyType({})
        self._make_metrics()
        self.built = True

    @read_only
    def terms(self) -> tuple[Term, ...]:
        """The terms of the loss, those of weight 0 left out."""
        return tuple({id(part.term): part.term for part in self._parts}.values())

    @property
    def _networks(self):
        return {prefix: learner.network for prefix, learner in self._learners.items()}

    @property
    def network(self) -> keras.Model:
        """The network that is trained, evaluated and exported; the first of several."""
        return next(iter(self._learners.values())).network

    def _needed_of(self, prefix):
        """Returns the names of what terms need of a network."""
        parts = (part for part in self._parts if part.network == prefix)
        return {output for part in parts for output in part.outputs}

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

    def _make_layers(self):
        """Makes the layers and variables that terms have."""
        self._layers_of_terms, self._layer_numbers, self.warmup_factors = [], {}, []
        for part in self._parts:
            learner = self._learners[part.network]
            for tap in part.taps if part.term.needs_teacher else ():
                shape = learner.classifier.shape(tap.output)
                targets = [each.shape(tap.target) for each in learner.teachers]
                try:
                    layer = _layer(part.term, targets, shape)
                except ValueError as error:
                    raise ValueError(
                        f"{part.term!r} on {tuple(tap)}: {error}"
                    ) from None
                if layer is not None:
                    layer.build(shape)
                    self._layer_numbers[part.metric, tap] = len(self._layers_of_terms)
                    self._layers_of_terms.append(layer)
        for term in self.terms:
            if term.warmup:
                # A variable, which a compiled step reads anew. Outside of `fit`, which
                # counts epochs, all of the weight.
                factor = self.add_weight(
                    name=f"warmup_{len(self.warmup_factors) + 1}",
                    initializer="ones",
                    dtype="float32",
                    trainable=False,
                )
                self.warmup_factors.append((term, factor))

    def own_callbacks(self):
        return [_WarmUp()] if self.warmup_factors else []

    # What a step computes.

    def outputs_of(self, images, training=False):
        """Returns the network's dict of outputs."""
        network = self.in_step(self.network) if training else self.network
        return named_outputs(network, images, training)

    def teachers_outputs(self, batch, outputs) -> dict[str, list[dict]]:
        """Returns the outputs of the teachers of each network, by its prefix.

        Args:
            batch: The batch, as `train_step` makes it.
            outputs: The networks' own, as `outputs_of` returns them.
        """
        return {}

    def each(self, function, outputs):
        """Returns what a function makes of the outputs of each network."""
        return function(outputs)

    def by_network(self, outputs):
        """Returns outputs by the prefix of each network's metrics."""
        return {"": outputs}

    def in_step(self, network) -> keras.Model:
        """Returns a network without the outputs that a step of training can spare."""
        return self._in_step.get(id(network), network)

    def needed_outputs(self):
        """Returns pairs of a `Classifier` and the names of what a step needs of it."""
        needed = {}
        for learner in self._learners.values():
            parts = [part for part in self._parts if part.network == learner.prefix]
            # Metrics are of the class logits, and those of heads of all of them.
            names = {"logits", *self._needed_of(learner.prefix)}
            if self.head_metrics:
                names |= set(output_names(learner.network))
            targets = {target for part in parts for target in part.targets}
            for classifier, of_it in (
                (learner.classifier, names),
                *(need for each in learner.teachers for need in each.needed(targets)),
            ):
                known = needed.setdefault(id(classifier.model), (classifier, set()))
                known[1].update(of_it)
        return [pair for pair in needed.values() if pair[1]]

    def _choose_outputs(self):
        """Leaves out of the steps what no term needs."""
        self._in_step = types.MappingProxyType(
            {
                id(classifier.model): classifier.computing(names)
                for classifier, names in self.needed_outputs()
            }
        )

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
        return [v for v in variables if id(v) not in self.frozen_ids | self._idle_ids]

    def _untrained(self):
        """Returns ids of the variables of networks that no term of the loss trains."""
        idle = set()
        for prefix, learner in self._learners.items():
            idle |= {id(variable) for variable in learner.network.variables}
            if trained := self._needed_of(prefix):
                learning = learner.classifier.computing(trained)
                idle -= {id(variable) for variable in learning.variables}
        return frozenset(idle)

    # Training.

    @property
    def term_names(self) -> list[str]:
        """Names of the terms of the loss among the logs."""
        return [part.metric for part in self._parts]

    def compile(
        self,
        optimizer="rmsprop",
        *,
        metrics=None,
        weighted_metrics=None,
        head_metrics: bool = False,
        **kwargs,
    ):
        """Configures training; the loss is that of the terms.

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
            **kwargs: Other arguments of `keras.Model.compile`: `jit_compile`,
                `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Returns:
            The model, so that `.fit(...)` can follow.

        Raises:
            ValueError: If a loss is given, weights of losses, or `head_metrics` of a
                network without heads.
        """
        for argument in ("loss", "loss_weights"):
            if kwargs.pop(argument, None) is not None:
                raise ValueError(
                    f"Expected no `{argument}`: the loss of {type(self).__name__} is "
                    "the weighted sum of its `terms`, such as KL(3.0, weight=0.5). "
                    f"Received: a value for `{argument}`"
                )
        self._check_heads("head_metrics", head_metrics)
        super().compile(
            optimizer=optimizer,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )
        self.head_metrics = bool(head_metrics)
        self._choose_outputs()
        # As text: a list of metrics would be tracked a second time.
        self._unweighted_metrics = repr(metrics) if metrics else ""
        return self

    def check_batch(self, images, labels, training=True):
        super().check_batch(images, labels, training)
        if training or self.head_metrics or self._evaluates_heads:
            check_suit(self.view_functions, self.network, images.shape[1:])

    def check_unlabeled(self, class_weight):
        super().check_unlabeled(class_weight)
        self._check_rows("images without a label")
        if self._unweighted_metrics:
            raise ValueError(
                f"Expected `weighted_metrics={self._unweighted_metrics}` in `compile`, "
                "which leave out images without a label. "
                f"Received: metrics={self._unweighted_metrics}"
            )

    def check_data(self, data, is_weighted):
        if is_weighted:
            self._check_rows("sample weights")
        replicas = num_replicas(self)
        if replicas > 1:
            shape = getattr(data, "element_spec", [None])[0]
            batch = None if shape is None else shape.shape[0]
            if batch is None or batch % replicas:
                self._check_rows("replicas whose numbers of images may differ")

    def _check_rows(self, what):
        """Raises a ValueError of what a term without a value a row has no way to do."""
        for term in self.terms:
            if term.is_scalar:
                raise ValueError(
                    f"Expected `terms` with one value a row for {what}, to weigh rows "
                    "or to leave them out; for replicas, data of whole batches, "
                    f"`drop_remainder=True`, suit, too. Received: {term!r}"
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
        images = self.augmented(x)
        if self.num_views > 1:
            images = transformed_views(images, self.view_functions)
        return {"images": images}

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
        if training and not isinstance(images, dict):  # in a loop of somebody's own
            images = self._batch_of_ones_own(images)
        if isinstance(images, dict):  # a batch of a step, or of images and targets
            images = images["images"]
        if training:  # `train_step` has made the views
            return train_on_rows(
                lambda rows: self.outputs_of(rows, training=True), images, self.num_seen
            )
        return run_on_rows(self._evaluated, images)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        y, valid = self.valid_labels(y, training)
        labels = standardized_labels(y)
        if training:
            x = x if isinstance(x, dict) else self._batch_of_ones_own(x)
            total = self._sum_of_terms(x, labels, y_pred, sample_weight)
            loss = loss_of_replica(total, ops.shape(labels)[0])
        else:
            total = self._cross_entropies(labels, y_pred, sample_weight)
            loss = total / num_replicas()  # which Keras undoes for the log
        return checks.flag_invalid_labels(loss, valid)

    def _batch_of_ones_own(self, images):
        """Returns a batch as `train_step` makes it, of images that it did not see."""
        if self._samples:
            raise ValueError(
                "Expected `fit` or `train_on_batch` with `sampled_views`, which are "
                "drawn once for a step. "
                f"Received: a call with training=True of {type(self).__name__}"
            )
        return self.rows_of(images)

    def _sum_of_terms(self, batch, labels, outputs, sample_weight):
        """Returns the loss of a step of training."""
        # Before another network runs: what its layers add is not to be trained on.
        total = sum(map(ops.mean, losses_of_replica(self.losses)))
        taught_by = {}
        if any(part.term.needs_teacher for part in self._parts):
            taught_by = self.teachers_outputs(batch, outputs)
        outputs, labeled = self.by_network(outputs), self._labeled(labels)
        for part in self._parts:
            rows = self.num_seen if part.on_views else 1
            weights = None
            if sample_weight is not None:
                self._check_rows("sample weights")
                weights = ops.repeat(sample_weight, rows)
            values = self._values(
                part,
                batch,
                self._labels_of(part, batch, labels),
                outputs[part.network],
                taught_by.get(part.network, ()) if part.term.needs_teacher else (),
                weights,
            )
            if part.on_views:
                values = self.weighed(values, _seen(batch))
            counted = None
            if part.term.needs_labels and labeled is not None:
                counted = ops.repeat(labeled, rows)
                values *= ops.cast(counted, values.dtype)
            if weights is not None:
                values *= ops.cast(weights, values.dtype)
            self._term_metrics[part.metric].update_state(values, counted)
            values *= ops.cast(self._weight_of(part.term), values.dtype)
            total = ops.add(total, mean_of_rows(values))
        return total

    def _values(self, part, batch, labels, outputs, taught_by, weights):
        """Returns the values of a term by row, their mean where there are teachers."""
        total, counts = None, {}
        if part.term.compares_rows and weights is not None:
            counts = {"counts": ops.not_equal(weights, 0)}
        for tap in part.taps:
            output = self._rows_of(part, outputs[tap.output], batch)
            if (number := self._layer_numbers.get((part.metric, tap))) is not None:
                layer = functools.partial(self._layers_of_terms[number], training=True)
                output = _wide(train_on_rows(layer, output))
            targets = [
                self._rows_of(part, given[tap.target], batch) for given in taught_by
            ]
            targets = [ops.stop_gradient(ops.cast(x, output.dtype)) for x in targets]
            values = [
                part.term.values(target, output, labels, **counts)
                for target in targets or [None]
            ]
            if any(len(x.shape) != (0 if part.term.is_scalar else 1) for x in values):
                wanted = "a batch" if part.term.is_scalar else "a row, of shape (rows,)"
                raise ValueError(
                    f"Expected {part.term!r} to return one value for {wanted}. "
                    f"Received: shape {tuple(values[0].shape)}"
                )
            mean = sum(values[1:], start=values[0]) / len(values)
            total = mean if total is None else ops.add(total, mean)
        return ops.reshape(total, (-1,))

    def _rows_of(self, part, output, batch):
        """Returns those rows of an output that a term is on."""
        output = _wide(output)
        if part.on_views:
            return output
        return untransformed(output, self._rows_of_an_image(_seen(batch)))

    def _labels_of(self, part, batch, labels):
        """Returns the labels of the rows that a term is on."""
        if part.is_of_a_head:
            return self.joint_labels_of(batch, labels)
        if part.on_views:
            return ops.repeat(labels, self.num_seen, axis=0)
        return labels

    def _weight_of(self, term):
        """Returns the weight of a term, as a number or a tensor."""
        for other, factor in self.warmup_factors:
            if other is term:
                return term.weight * ops.convert_to_tensor(factor)
        return term.weight

    def _cross_entropies(self, labels, outputs, sample_weight):
        """Returns the loss of an evaluation: the cross-entropy of the class logits."""
        means = []
        for own in self.by_network(outputs).values():
            values = cross_entropy(labels, self._image_logits(own, None))
            if sample_weight is not None:
                values *= ops.cast(ops.repeat(sample_weight, 1), values.dtype)
            means.append(mean_of_rows(values))
        return sum(means)

    def joint_labels_of(self, batch, labels):
        """Returns the joint labels of a batch's rows of views."""
        joint = joint_labels(labels, self.num_views)
        return seen_rows(joint, _seen(batch), self.num_views)

    def _labeled(self, labels):
        """Returns 1 for each image with a label, 0 without; None where all have one."""
        if not self.takes_unlabeled or len(labels.shape) != 1:
            return None
        return ops.cast(labels >= 0, "float32")

    def _image_logits(self, outputs, seen):
        """Returns the class logits of the images themselves."""
        if not isinstance(outputs, dict):
            return outputs
        return untransformed(outputs["logits"], self._rows_of_an_image(seen))

    def _rows_of_an_image(self, seen):
        return self.num_views if seen is None else self.num_seen


def _layer(term, teacher_shapes, shape):
    """Returns the layer that a term has for outputs of these shapes, if there is one.

    Raises:
        ValueError: If it has none for one of them, or would need one for each teacher.
    """
    layers = [term.make_layer(each, shape) for each in dict.fromkeys(teacher_shapes)]
    if len(layers) > 1 and any(layer is not None for layer in layers):
        raise ValueError(
            "Expected the same shape of all teachers' features for a term with a "
            f"layer. Received: {teacher_shapes}"
        )
    return layers[0]


def _wide(output):
    """Returns an output in float32 at least: squares of float16 overflow."""
    wide = keras.backend.result_type(output.dtype, "float32")
    return ops.cast(output, wide)


class _WarmUp(FitCallback):
    """Tells a trainer how much of their weights its terms have in an epoch."""

    @contextlib.contextmanager
    def around_fit(self, model, fit):
        try:
            yield fit
        finally:  # what trains without epochs has all of the weights
            for _, factor in model.warmup_factors:
                factor.assign(1.0)

    def on_epoch_begin(self, epoch, logs=None):
        for term, factor in self.model.warmup_factors:
            factor.assign(min((epoch + 1) / term.warmup, 1.0))


def _seen(batch):
    """Returns which views a batch of a step has; None where it has all."""
    return batch.get("seen") if isinstance(batch, dict) else None


def _check_parts(parts, sampled_views):
    if not any(part.term.weight > 0 for part in parts):
        raise ValueError(
            "Expected at least one of `terms` to have a weight above 0. "
            f"Received: {[part.term for part in parts]}"
        )
    for part in parts:
        if part.term.is_scalar and sampled_views is not None:
            raise ValueError(
                "Expected `terms` with one value a row for `sampled_views`, whose rows "
                f"are weighed. Received: {part.term!r}, sampled_views={sampled_views}"
            )


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
