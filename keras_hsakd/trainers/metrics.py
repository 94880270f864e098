"""What the trainers report: terms, accuracies of the heads; and their evaluation."""

import contextlib

import keras
from keras import ops

from keras_hsakd.heads import output_names
from keras_hsakd.ops import head_accuracies, sampled_view_weights, standardized_labels


class Metrics:
    """Mixin of a trainer: its metrics in training, and what `evaluate` measures."""

    head_metrics = False
    _evaluating = False
    _evaluates_heads = False

    def _make_metrics(self):
        """Makes a metric for each term, and those of the heads."""
        self._term_metrics = {
            part.metric: keras.metrics.Mean(part.metric) for part in self._parts
        }
        self._head_metrics = {
            name: keras.metrics.Mean(name)
            for prefix, network in self._networks.items()
            for head in output_names(network)[1:]
            for name in _head_metric_names(prefix, head).values()
        }

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, _ = self.valid_labels(y, training=not self._evaluating)
        labels = standardized_labels(y)
        labeled = None if self._evaluating else self._labeled(labels)
        seen = x.get("seen") if isinstance(x, dict) else None
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

    def _update_head_metrics(self, prefix, batch, labels, outputs, labeled):
        seen = batch.get("seen") if isinstance(batch, dict) else None
        joint = self.joint_labels_of(batch, labels)
        rows = self._rows_of_an_image(seen)
        weights = None if labeled is None else ops.repeat(labeled, rows)
        for head in outputs.keys() & set(output_names(self._networks[prefix])[1:]):
            hits = head_accuracies(joint, outputs[head], self.num_views)
            for kind, name in _head_metric_names(prefix, head).items():
                values = self.weighed(ops.cast(hits[kind], "float32"), seen)
                self._head_metrics[name].update_state(values, weights)

    def weighed(self, values, seen):
        """Returns values of rows of views, each weighed for those it stands for."""
        if seen is None:
            return values
        weights = sampled_view_weights(self.num_views, self.num_seen)
        values = ops.reshape(values, (-1, self.num_seen))
        return ops.reshape(values * ops.cast(weights, values.dtype), (-1,))

    def get_metrics_result(self):
        results = super().get_metrics_result()
        left_out = set(self._term_metrics) if self._evaluating else set()
        if not self._reports_heads():
            left_out |= set(self._head_metrics)
        return {name: v for name, v in results.items() if name not in left_out}

    def _reports_heads(self):
        return self._evaluates_heads if self._evaluating else self.head_metrics

    # Evaluation.

    def _evaluated(self, images):
        """Returns what an evaluation looks at: class logits, or all outputs."""
        if self._evaluates_heads:
            return self.outputs_of(self.rows_of(images)["images"])
        return self.each(lambda outputs: outputs["logits"], self.outputs_of(images))

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


def _head_metric_names(prefix, head):
    return {kind: f"{prefix}{head}_{kind}_accuracy" for kind in ("joint", "class")}
