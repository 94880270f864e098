"""Plants faults in a copy of the package, one at a time: does a test notice each?

    make test-mutants
    python tests/mutants.py --only kl_direction joint_labels
    python tests/mutants.py --root ../before     # the same faults in another checkout

A fault that no test notices is named at the end, and the exit code is 1.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Fault(NamedTuple):
    """A line of the package, what it becomes, and the tests that should notice.

    The text stands in one file of the package, once.
    """

    text: str
    replacement: str
    tests: str


FAULTS = {
    # Losses.
    "kl_temperature": Fault(
        "return temperature**2 * ops.sum(", "return temperature * ops.sum(", "ops"
    ),
    "kl_direction": Fault(
        "ops.exp(teacher) * (teacher - student)",
        "ops.exp(student) * (student - teacher)",
        "ops",
    ),
    "joint_labels": Fault(
        "num_views * labels + views",
        "labels + num_views * views",
        "ops",
    ),
    "class_logits": Fault(
        "return ops.sum(joint_logits, axis=2)",
        "return ops.max(joint_logits, axis=2)",
        "ops views",
    ),
    "sum_for_mean": Fault(
        "ops.add(total, mean_of_rows(values))",
        "ops.add(total, ops.sum(values))",
        "trainers",
    ),
    "sum_over_heads": Fault(
        "names = heads if on == HEADS else [on]",
        "names = heads[:1] if on == HEADS else [on]",
        "trainers authors_steps",
    ),
    "detached_targets": Fault(
        "ops.stop_gradient(ops.cast(x, output.dtype)) for x in targets",
        "ops.cast(x, output.dtype) for x in targets",
        "mutual authors_steps",
    ),
    "weight_of_a_term": Fault(
        "        return term.weight\n", "        return 1.0\n", "terms trainers"
    ),
    "warm_up": Fault("min((epoch + 1) / term.warmup, 1.0)", "1.0", "terms"),
    "losses_of_replicas": Fault(
        "map(ops.mean, losses_of_replica(self.losses))",
        "map(ops.mean, self.losses)",
        "strategies",
    ),
    "sampled_weights": Fault(
        "others = (num_views - 1) / (num_sampled - 1)", "others = 1.0", "cheaper"
    ),
    "sampled_rows": Fault(
        "first[:, None] + seen, (-1,)", "first[:, None] + seen * 0, (-1,)", "cheaper"
    ),
    "state_of_the_draws": Fault("self._seeds.state.assign(drawn)", "pass", "cheaper"),
    "idle_heads": Fault("return frozenset(idle)\n", "return frozenset()\n", "cheaper"),
    "needed_outputs": Fault(
        "id(classifier.model): classifier.computing(names)",
        "id(classifier.model): classifier.model",
        "cheaper",
    ),
    "rest_of_an_execution": Fault("if left < size:", "if False:", "executions"),
    "end_of_an_epoch": Fault(
        "return min(batch + 1, steps or batch + 1)",
        "return batch + 1",
        "executions",
    ),
    "replicas_in_a_row": Fault(
        "return lambda iterator: function(next_batches(iterator, size))",
        "return function",
        "strategies",
    ),
    "rows_of_replicas": Fault(
        "counted = mean * rows / global_sum(rows)",
        "counted = mean / num_replicas()",
        "strategies",
    ),
    "replica_without_rows": Fault(
        "x[: tf.where(is_any, tf.shape(x)[0], 0)]", "x", "strategies"
    ),
    "loss_of_unlabeled": Fault(
        "values *= ops.cast(counted, values.dtype)", "pass", "trainers"
    ),
    "metrics_of_unlabeled": Fault(
        "sample_weight *= ops.cast(labeled, sample_weight.dtype)", "pass", "trainers"
    ),
    "pairs_of_heads": Fault(
        "last = of_teacher[len(of_teacher) - len(of_student) :]",
        "last = of_teacher[: len(of_student)]",
        "attach_heads own_models trainers",
    ),
    # Views.
    "quarter_turn": Fault(
        "return ops.flip(ops.swapaxes(images, 1, 2), axis=1)",
        "return ops.flip(ops.swapaxes(images, 1, 2), axis=2)",
        "ops views",
    ),
    "order_of_views": Fault(
        "rows = ops.stack([view(images) for view in views], axis=1)",
        "rows = ops.stack([view(images) for view in views], axis=0)",
        "ops views",
    ),
    "untransformed": Fault(
        "return rows[::num_views]",
        "return rows[num_views - 1 :: num_views]",
        "ops trainers",
    ),
    # Batch normalization.
    "batch_norm_momentum": Fault(
        "momentum: float = 0.9, epsilon", "momentum: float = 0.99, epsilon", "layers"
    ),
    "unbiased_variance": Fault(
        "old + added * count / ops.maximum(count - 1, 1)", "old + added", "layers"
    ),
    "frozen_statistics": Fault(
        "updates_statistics = training and self.trainable",
        "updates_statistics = training",
        "layers",
    ),
    "batch_norm_kernel_momentum": Fault(
        "exponential_avg_factor=1 - self.momentum",
        "exponential_avg_factor=self.momentum",
        "layers",
    ),
    "groups_of_a_convolution": Fault(
        "ops.split(kernel[0, 0], self.groups, axis=1)",
        "ops.split(kernel[0, 0], self.groups, axis=1)[::-1]",
        "layers",
    ),
    # Optimizer.
    "nesterov": Fault(
        "use_nesterov=self.nesterov",
        "use_nesterov=False",
        "optimizers",
    ),
    "weight_decay": Fault(
        "gradient = gradient + variable * self.weight_decay",
        "gradient = gradient + variable * self.weight_decay * learning_rate",
        "optimizers",
    ),
    "weight_decay_of_biases": Fault(
        "if self.weight_decay and self._use_weight_decay(variable):",
        "if self.weight_decay and len(variable.shape) > 1:",
        "optimizers",
    ),
    "buffer_of_momentum": Fault(
        "grad=gradient,",
        "grad=gradient * learning_rate,",
        "optimizers",
    ),
    "milestones": Fault(
        "round(m * epochs) * steps_per_epoch - 1 for",
        "round(m * epochs) * steps_per_epoch for",
        "optimizers",
    ),
    # Networks and heads.
    "last_head": Fault(
        "or [(last_number, last_stage, 1)]",
        "or [(last_number, last_stage, 2)]",
        "models",
    ),
    "order_of_taps": Fault(
        "for index, x in enumerate(taps, start=1)",
        "for index, x in enumerate(reversed(taps), start=1)",
        "models",
    ),
    "initial_deviation": Fault(
        "deviation = (2 / (kernel_size**2 * filters)) ** 0.5",
        "deviation = (2 / fan_in) ** 0.5",
        "models",
    ),
    "after_preprocessing": Fault(
        "zip(copy.variables, network.variables, strict=True)", "()", "graph"
    ),
    "place_of_preprocessing": Fault(
        "{id(preprocessed): layer(images)}",
        "{id(network.inputs[0]): layer(images)}",
        "graph",
    ),
    "copy_of_adapted": Fault(
        "    finalize_states(copy)\n    return copy", "    return copy", "graph"
    ),
    "own_graph": Fault(
        "if any(isinstance(layer, keras.Model) for layer in flat.layers):",
        "if True:",
        "attach_heads",
    ),
    # What outputs are.
    "clipped_softmax": Fault(
        "if _is_softmax(before, output, values, values):",
        "if _is_softmax(before, after, values, values):",
        "logits",
    ),
    "softmax_of_percent": Fault(
        "wanted = 1 if np.ptp(values, axis=0).max() == 0 else sums[0]",
        "wanted = 1",
        "logits",
    ),
    "sigmoid": Fault(
        "if np.all(values <= 1 + _HALF_PRECISION):", "if False:", "logits"
    ),
    "logits_of_zeros": Fault(" or not np.any(values):", ":", "logits"),
    "state_of_copies": Fault(
        "            _take_over_state(own, operation)",
        "            pass",
        "attach_heads",
    ),
    "budget_of_heads": Fault(
        "if multiplied <= most and parameters <= largest:", "if True:", "light_heads"
    ),
    "joint_logits_of_light_heads": Fault(
        "layers.Permute((2, 1), name=",
        "layers.Permute((1, 2), name=",
        "light_heads",
    ),
    "rest_of_a_classifier": Fault(
        "if classifier.logits is classifier.products:", "if True:", "attach_heads"
    ),
    "whole_copies": Fault(
        '_ADAPTED = ("lora_rank", "lora_alpha")', "_ADAPTED = ()", "attach_heads"
    ),
    "softmax_in_heads": Fault(
        "if classifier.had_softmax:", "if False:", "logits attach_heads"
    ),
    "teacher_checked": Fault(
        "return NetworkTeacher(prepared(teacher, role))",
        "return NetworkTeacher(teacher)",
        "logits terms",
    ),
    # Features and ensembles.
    "features_of_images": Fault(
        "return [part(on, _features(on, term, learner), False)]",
        "return [part(on, _features(on, term, learner), True)]",
        "features",
    ),
    "sum_over_taps": Fault(
        "total = mean if total is None else ops.add(total, mean)",
        "total = mean",
        "features",
    ),
    "rows_of_weight_zero": Fault(
        'counts = {"counts": ops.not_equal(weights, 0)}', "pass", "features"
    ),
    "equal_images": Fault(
        "distances = ops.sqrt(ops.where(differ > 0, squares, 1.0)) * differ",
        "distances = ops.sqrt(squares)",
        "features",
    ),
    "seed_of_a_regressor": Fault(
        '"fan_in", "uniform", seed)', '"fan_in", "uniform")', "features"
    ),
    "shares_of_teachers": Fault(
        "values = values * ops.cast(self.shares[number], values.dtype)",
        "values = values / len(self._members)",
        "ensembles",
    ),
    "last_heads_of_a_teacher": Fault(
        "return own[len(own) - len(heads) + heads.index(name)]",
        "return own[heads.index(name)]",
        "ensembles",
    ),
    # Freezing.
    "frozen_backbone": Fault(
        "frozen=strip_heads(teacher).variables if freeze_backbone else ()",
        "frozen=()",
        "trainers",
    ),
    "frozen_variables": Fault(
        "if id(v) not in self.frozen_ids | self._idle_ids",
        "if id(v) not in self._idle_ids",
        "trainers",
    ),
    "frozen_inference": Fault(
        "features = self._halves.backbone(images, training=False)",
        "features = self._halves.backbone(images, training=training)",
        "trainers",
    ),
    # Going on.
    "restored_once": Fault(
        "self._restore()  # what callbacks have just changed was changed before",
        "pass",
        "snapshots",
    ),
    "skipped_batches": Fault(
        "next(iterator, None)",
        "pass",
        "snapshots streams",
    ),
    "counter_of_epochs": Fault(
        "counter.value = begun + passes + self._passes_before",
        "counter.value = begun + passes",
        "streams",
    ),
    "place_in_steps": Fault(
        "seen += (epoch - self._initial_epoch) * self._steps_per_epoch",
        "seen += 0",
        "streams",
    ),
    "data_not_exact": Fault(
        "fit.feed.check_exact(model.steps_per_execution)", "pass", "streams"
    ),
    "state_of_optimizer": Fault(
        '"optimizer": model.optimizer.variables,',
        '"optimizer": model.optimizer.variables[:2],',
        "snapshots",
    ),
    "metrics_of_part_epoch": Fault(
        'assign_replicas(model, model.metrics_variables, state["metrics"])',
        "pass",
        "snapshots",
    ),
    "random_state": Fault(
        '"numpy": np.random.get_state(),',
        '"numpy": np.random.RandomState(0).get_state(),',
        "snapshots",
    ),
    # Data.
    "order_by_epoch": Fault(
        "order_seed, draws_seed = _seeds(seed, epoch)",
        "order_seed, draws_seed = _seeds(seed, 0 * epoch)",
        "data",
    ),
    "draws_by_image": Fault(
        "(batch, *draws.at(tf.maximum(batch, 0)))",
        "(batch, *draws.at(tf.range(tf.size(batch))))",
        "streams",
    ),
    "draws_by_epoch": Fault(
        "return _with_draws(indices, draw(num_examples, draws_seed))\n",
        "return _with_draws(indices, draw(num_examples, (seed, 0)))\n",
        "data streams",
    ),
    "tuned_by_tensorflow": Fault(
        "options.autotune.enabled = False",
        "options.autotune.enabled = True",
        "autotuning",
    ),
    "padding": Fault(
        "return height // 8, width // 8", "return height // 8, height // 8", "data"
    ),
    "flip_of_one": Fault(
        "tf.reverse(cropped, axis=[1])", "tf.reverse(cropped, axis=[0])", "data"
    ),
    "flip": Fault(
        "tf.reverse(columns, axis=[1])", "tf.reverse(columns, axis=[0])", "data"
    ),
    "first_step": Fault(
        "order[first_step * batch_size : end]", "order[first_step:end]", "data"
    ),
    "share": Fault(
        "size * part // self.replicas, size * (part + 1) // self.replicas",
        "size * part // self.replicas, size * part // self.replicas + 1",
        "streams",
    ),
    "filling_is_read": Fault("index < 0,", "index < -1,", "streams"),
    "bytes_of_records": Fault(
        "np.array(contents, object)", "np.array(contents)", "tfds"
    ),
    "secret_labels": Fault(
        'if self._is_labelled(split, read("test_split", split)):', "if True:", "tfds"
    ),
    "other_images_go_on": Fault(
        "found.record.get(name) != record[name]", "False", "identity"
    ),
    "other_images_averaged": Fault(
        'fingerprint["train"][:FINGERPRINT_DIGITS]', '"one"', "identity"
    ),
    "old_run_stays_gone": Fault(
        "if goes_on or not bring_back(self.path):", "if True:", "runs"
    ),
    "resume_throws_away": Fault(
        "missing += [] if has_snapshots else [found.snapshots]", "pass", "runs"
    ),
    "splits_in_one": Fault(
        "(positions[first_test:], labels[first_test:]),",
        "(positions[:-first_test], labels[:-first_test]),",
        "tfds",
    ),
    "without_a_label": Fault(
        "reader.read(files, [-1] * len(files)",
        "reader.read(files, [0] * len(files)",
        "unlabeled",
    ),
    "place_of_a_kept_image": Fault(
        "np.argsort(np.argsort(begins))", "np.argsort(begins)", "keeping"
    ),
    "changed_file": Fault(
        "state = status.st_size, status.st_mtime_ns, tf.__version__",
        "state = tf.__version__",
        "keeping",
    ),
    "room": Fault(
        "if ends[-1] / seen.sum() * count > room:",
        "if ends[-1] / seen.sum() * count > 2 * room:",
        "keeping",
    ),
    "joined_index": Fault(
        "lambda: self._second.read(index - length),",
        "lambda: self._second.read(0 * index),",
        "unlabeled",
    ),
    # Checkpoints, export.
    "axes_of_kernels": Fault(
        '("kernel", "weight", (2, 3, 1, 0)),',
        '("kernel", "weight", (3, 2, 1, 0)),',
        "checkpoints",
    ),
    "running_variance": Fault(
        '("moving_variance", "running_var", (0,)),',
        '("gamma", "running_var", (0,)),',
        "checkpoints",
    ),
    "missing_keys": Fault(
        "missing = [key for key in entries if key not in state]",
        "missing = [key for key in entries if key not in state][1:]",
        "checkpoints",
    ),
    "left_over_keys": Fault("if missing or extra:", "if missing:", "checkpoints"),
    "average_for_weights": Fault(
        "if _TRAINED.fullmatch(p)}", "if not _TRAINED.fullmatch(p)}", "checkpoints"
    ),
    "weights_not_finite": Fault(
        "if not np.isfinite(array).all()", "if np.isnan(array).any()", "checkpoints"
    ),
    "unchecked_export": Fault("if most <= tolerance *", "if most <= 1e9 *", "export"),
    "empty_batch": Fault(
        "some = padded[: tf.maximum(count, 1)]", "some = images", "export"
    ),
    "shape_not_looked_at": Fault(
        "images = tf.ensure_shape(images, [None, *self.shape])", "pass", "export"
    ),
    "truncated_floats": Fault(
        "taken = keras.ops.round(floats)", "taken = floats", "export"
    ),
    "artefact_replaced": Fault(
        "_check_free(path)\n    os.rename", "os.rename", "export"
    ),
    "version_again": Fault(
        "max(numbers, default=0) + 1", "max(numbers, default=1)", "export"
    ),
    "calibration_floor": Fault(
        "np.ceil(confidences * bins).astype(int) - 1",
        "np.round(confidences * bins).astype(int)",
        "report",
    ),
    "calibration_signed": Fault("np.abs(gaps).sum()", "np.abs(gaps.sum())", "report"),
    "confusion_turned": Fault(
        "(labels, np.argmax(probabilities, axis=1)), 1",
        "(np.argmax(probabilities, axis=1), labels), 1",
        "report",
    ),
    "ties_at_random": Fault(
        'np.argsort(-np.asarray(probabilities), axis=1, kind="stable")',
        'np.argsort(np.asarray(probabilities), axis=1, kind="stable")[:, ::-1]',
        "report",
    ),
    "drop_as_allowed": Fault(
        'report["drop"] > most:\n            measured',
        'report["drop"] >= most:\n            measured',
        "report",
    ),
    "not_kept_aside": Fault(
        "error.path = path + REJECTED", "error.path = path", "report"
    ),
    "warm_up_counted": Fault(
        "for _ in range(min(_WARM_UP, calls)):", "for _ in range(0):", "report"
    ),
    "other_mistakes": Fault("images[index - start]", "images[0]", "report"),
    "page_unescaped": Fault("autoescape=True", "autoescape=False", "report tryout"),
    "temperature": Fault("expected - right) > 0", "expected - right) < 0", "export"),
    # The page.
    "grad_cam_channels": Fault(
        "weights = ops.mean(gradients, axis=(1, 2), keepdims=True)",
        "weights = gradients",
        "grad_cam",
    ),
    "grad_cam_negative": Fault(
        "ops.relu(ops.sum(weights", "(ops.sum(weights", "grad_cam"
    ),
    "joint_prediction": Fault(
        "divmod(int(probabilities.argmax()), len(names))",
        "divmod(int(probabilities.argmax()), 10)[::-1]",
        "tryout",
    ),
    "tried_crop": Fault(
        "return center_crop(image, self._image_size, self._center_crop).numpy()",
        "pass",
        "tryout",
    ),
    "tried_teacher": Fault("if known not in (None, found):", "if False:", "tryout"),
    "size_of_a_file": Fault(
        "if len(content) > MAX_SIZE * 10**6:", "if False:", "tryout"
    ),
    # Runs.
    "settings_not_given": Fault(
        "for k, v in settings[name].items() if v is not None}",
        "for k, v in settings[name].items()}",
        "runs",
    ),
    "digest_of_origin": Fault(
        "digest.update(values.tobytes())",
        "digest.update(values.dtype.str.encode())",
        "runs",
    ),
    "differences_of_runs": Fault(
        '_IDENTITY = ("kind", "options", "data", "training", "files", "origin")',
        '_IDENTITY = ("kind", "data", "training", "files", "origin")',
        "runs",
    ),
    "record_of_end": Fault(
        'self.record["status"] = "finished"',
        'self.record["status"] = "running"',
        "runs",
    ),
    "normalisation": Fault(
        "return Made(with_preprocessing(network, images.preprocessing()))",
        "return Made(network)",
        "runs",
    ),
    "linear_normalisation": Fault(
        "trained = with_preprocessing(trained, images.preprocessing())", "pass", "runs"
    ),
    # The cached teacher.
    "variant_of_an_epoch": Fault(
        "variant = epoch % cache.variants",
        "variant = epoch * 0",
        "teacher_cache",
    ),
    "draws_of_a_variant": Fault(
        "_, draws_seed = _seeds(cache.seed, variant)",
        "_, draws_seed = _seeds(cache.seed, epoch)",
        "teacher_cache",
    ),
    "targets_of_images": Fault(
        "targets = cache.read(int(variants[0]), indices)",
        "targets = cache.read(int(variants[0]), indices * 0)",
        "teacher_cache",
    ),
    "views_of_targets": Fault(
        "name: keras.ops.reshape(values, (-1, values.shape[-1]))",
        "name: keras.ops.reshape(values[:, ::-1], (-1, values.shape[-1]))",
        "teacher_cache",
    ),
    "scale_of_8_bits": Fault(
        "return values * scale + offset",
        "return values * scale",
        "teacher_cache",
    ),
    "data_of_a_cache": Fault("    cache.check_data(source)\n", "", "teacher_cache"),
    "other_cache_at_a_path": Fault(
        'if found["digest"] != self.digest:', "if False:", "teacher_cache"
    ),
    "checksums_of_a_cache": Fault(
        "if received != expected:\n                    raise format",
        "if False:\n                    raise format",
        "teacher_cache",
    ),
    "cache_of_a_snapshot": Fault(
        "return self.cache.digest if self.cache else super().frozen_digest()",
        "return super().frozen_digest()",
        "teacher_cache",
    ),
    "cache_of_a_run": Fault(
        'settings["origin"]["cache"] = origin["cache"]["digest"]',
        "pass",
        "cached_runs",
    ),
    "teacher_of_a_cache": Fault(
        "if weights != [each.weights for each in origin.all]:",
        "if False:",
        "cached_runs",
    ),
    # Plans.
    "trained_network": Fault("_TRAINED = 3", "_TRAINED = 2", "costs"),
    "cost_of_unseen_views": Fault("trainer.num_seen *", "trainer.num_views *", "costs"),
    "step_that_compiles": Fault("if self._compiled:", "if True:", "callbacks"),
    "sample_of_steps": Fault("self._every *= 2", "pass", "callbacks"),
    "plan_of_another": Fault("if names := differing(row):", "if False:", "plan"),
    "heads_of_a_way": Fault("KL(3.0, on='{last_head}')", "KL(3.0, on='heads')", "plan"),
    "teacher_that_was_paid": Fault(
        'if plan["teacher"]["run"] is None:', "pass", "plan"
    ),
    # What a network is worth beyond its accuracy, and TensorBoard.
    "divergence_from_teacher": Fault(
        "metrics.divergence(expected, probabilities)",
        "metrics.divergence(probabilities, expected)",
        "quality",
    ),
    "noise_of_a_batch": Fault(
        "indices = range(start, start + len(labels))",
        "indices = range(len(labels))",
        "quality",
    ),
    "points_twice": Fault(
        "forget(self.run.tensorboard(part), self._epochs)", "pass", "tensorboard"
    ),
}


def place_of(fault, root):
    """Returns the file that has the text of a fault, and how often files have it."""
    files = sorted((root / "keras_hsakd").rglob("*.py"))
    counts = {path: path.read_text().count(fault.text) for path in files}
    return max(counts, key=counts.get), sum(counts.values())


def files_of(fault, root):
    """Returns the test files of a fault; a version before may have others."""
    files = [f"tests/test_{name}.py" for name in fault.tests.split()]
    return [file for file in files if (root / file).exists()]


def outcome(fault, root, everything):
    """Plants a fault in a copy, runs its tests, and returns what came of it."""
    path, count = place_of(fault, root)
    if count != 1:
        return "not there" if count == 0 else f"there {count} times"
    whole = path.read_text()
    path.write_text(whole.replace(fault.text, fault.replacement))
    try:
        files = files_of(fault, root)
        if not files:
            return "has no tests there"
        for tests in [files, []] if everything else [files]:
            if (failed := first_failure(root, tests)) is not None:
                return f"noticed by {failed}"
        return "NOT NOTICED"
    finally:
        path.write_text(whole)


def first_failure(root, tests):
    """Returns the first test that fails, or None."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if result.returncode == 0:
        return None
    lines = result.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if not failed:
        raise RuntimeError(f"Expected tests to run. Received: {result.stdout[-2000:]}")
    return failed[0].split()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument(
        "--all", action="store_true", help="all tests, where its own pass"
    )
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="a checkout")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    options = parser.parse_args()
    if options.list:
        print("\n".join(FAULTS))
        return 0
    names = options.only or list(FAULTS)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copies = queue.Queue()
        for number in range(options.jobs):
            copy = pathlib.Path(folder, str(number))
            ignored = shutil.ignore_patterns(".*", "__pycache__", "demo", "build")
            shutil.copytree(options.root, copy, ignore=ignored)
            copies.put(copy)
        every = {file for name in names for file in files_of(FAULTS[name], copy)}
        if (failed := first_failure(copy, ["-n", "2", *sorted(every)])) is not None:
            sys.exit(f"Expected tests that pass without a fault. Received: {failed}")

        def run(name):
            copy = copies.get()
            try:
                came = outcome(FAULTS[name], copy, options.all)
            finally:
                copies.put(copy)
            print(f"{name:22}{came}", flush=True)
            return came

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            results = dict(zip(names, pool.map(run, names), strict=True))
    noticed = [name for name in names if results[name].startswith("noticed")]
    others = [name for name in names if name not in noticed]
    seconds = time.perf_counter() - began
    print(f"{len(noticed)} of {len(names)} faults noticed, in {seconds:.0f} seconds.")
    if others:
        print(f"Not noticed: {', '.join(others)}")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
