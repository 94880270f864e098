"""The main job on real data in minutes: teacher, students, table, picture, export."""

import dataclasses
import os
import platform
import shutil
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from keras_hsakd import data, export, models
from keras_hsakd.files import write_json
from keras_hsakd.heads import strip_heads
from keras_hsakd.optimizers import SGD, step_decay
from keras_hsakd.runs import plots
from keras_hsakd.runs.settings import DemoSettings
from keras_hsakd.trainers import Distiller, TeacherTrainer

_RESULTS = "results.json"

METHODS = {
    "teacher": "teacher with heads",
    "plain": "student, labels alone",
    "logits": "student, keras.distillation",
    "hsakd": "student, HSAKD",
}


def run(
    output: str | os.PathLike = "demo",
    seeds: int = 3,
    validation: bool = False,
    overwrite: bool = False,
    settings: DemoSettings = DemoSettings(),
) -> dict:
    """Runs the demo on handwritten digits and writes what came out.

    For each seed: a teacher with auxiliary heads, and the same small student three
    times, trained on labels alone, by `keras.distillation` (logits), and by HSAKD. The
    last seed's HSAKD student is exported, loaded again, and classifies test images.

    Args:
        output: Folder for `results.json`, `curves.png` and the SavedModel
            `serving/student/1`. Defaults to `"demo"`.
        seeds: Number of repetitions. Defaults to 3.
        validation: Whether to measure on a held-out part of the training images
            instead of the test images, to choose settings. Defaults to `False`.
        overwrite: Whether to replace an existing folder. Defaults to `False`.
        settings: What is trained. Defaults to `DemoSettings()`.

    Returns:
        The content of `results.json`.

    Raises:
        FileExistsError: If `output` exists and `overwrite` is not set.
        ImportError: If scikit-learn or matplotlib is missing.
        ValueError: If a setting is outside its range.

    Example:
    >>> results = run("demo")  # doctest: +SKIP
    >>> round(results["methods"]["hsakd"]["accuracy_mean"], 2)  # doctest: +SKIP
    """
    output = os.path.abspath(output)
    for name, value in (("seeds", seeds), ("evaluate_every", settings.evaluate_every)):
        if value < 1:
            raise ValueError(
                f"Expected `{name}` to be at least 1. Received: {name}={value}"
            )
    if os.path.exists(output) and not (overwrite and _is_demo(output)):
        raise FileExistsError(
            "Expected `output` to be a folder that does not exist, or that an earlier "
            f"demo wrote and `--overwrite` may replace. Received: '{output}'"
        )
    for name in ("teacher_epochs", "student_epochs"):
        epochs = getattr(settings, name)
        if epochs < 1 or epochs % settings.evaluate_every:
            raise ValueError(
                f"Expected `{name}` to be a positive multiple of "
                f"evaluate_every={settings.evaluate_every}. Received: {name}={epochs}"
            )
    # What is missing or misspelt is to be reported before minutes of training.
    plots.pyplot()
    _load(settings, seed=0, validation=validation)
    parameters = {
        role: strip_heads(_create(settings, role)).count_params()
        for role in ("teacher", "student")
    }

    began = time.perf_counter()
    curves = {method: [] for method in METHODS}
    for seed in range(seeds):
        student, histories, test = _train_all(settings, seed, validation)
        for method, accuracies in histories.items():
            curves[method].append(accuracies)
    results = {
        "data": "digits",
        "measured_on": "validation images" if validation else "test images",
        "settings": dataclasses.asdict(settings),
        "seeds": list(range(seeds)),
        "methods": {
            method: _summary(np.array(values)) for method, values in curves.items()
        },
        "parameters": parameters,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }

    # Written aside: nothing half-written is ever at `output`.
    os.makedirs(os.path.dirname(output), exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".demo-", dir=os.path.dirname(output))
    try:
        written = os.path.join(temporary, "demo")
        os.mkdir(written)
        write_json(os.path.join(written, _RESULTS), results)
        _draw(results, os.path.join(written, "curves.png"))
        served = os.path.join(written, "serving", "student", "1")
        export.saved_model(student, served, data.info("digits").preprocessing())
        if os.path.exists(output):
            os.rename(output, os.path.join(temporary, "replaced"))
        os.rename(written, output)
    finally:
        shutil.rmtree(temporary)

    print(table(results))
    _classify(os.path.join(output, "serving", "student", "1"), test)
    print(f"Wrote {output}: {_RESULTS}, curves.png and serving.")
    return results


def _is_demo(path):
    return os.path.isfile(os.path.join(path, _RESULTS))


def table(results: dict) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        f"Accuracy on {results['measured_on']} of '{results['data']}', mean and "
        f"standard deviation of {len(results['seeds'])} seeds, "
        f"{results['settings']['examples_per_class']} labelled images a class",
        "",
        "| network | parameters | last epoch | best epoch* |",
        "| --- | --- | --- | --- |",
    ]
    for method, row in results["methods"].items():
        role = "teacher" if method == "teacher" else "student"
        lines.append(
            f"| {METHODS[method]} ({results['settings'][role]}) "
            f"| {results['parameters'][role]:,} "
            f"| {row['accuracy_mean']:.2%} ± {row['accuracy_std']:.2%} "
            f"| {row['best_mean']:.2%} |"
        )
    lines += [
        "",
        f"* chosen on the {results['measured_on']} themselves, as in the paper.",
        f"{results['seconds']:.0f} seconds on {results['machine']}.",
    ]
    return "\n".join(lines)


def _load(settings, seed, validation):
    return data.load(
        "digits",
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        examples_per_class=settings.examples_per_class,
        validation=validation,
        seed=seed,
    )


def _create(settings, role):
    size = settings.image_size
    return models.create(getattr(settings, role), 10, input_shape=(size, size, 3))


def _train_all(settings, seed, validation):
    """Returns the HSAKD student, the accuracies by method and epoch, and test data."""
    histories = {}

    def create(role):
        keras.utils.set_random_seed(seed)
        return _create(settings, role)

    def fit(method, model, epochs, loss_scale=1.0, **compile_arguments):
        keras.utils.set_random_seed(seed)
        # Loaded anew, so that each method sees the same batches in the same order.
        train, test = _load(settings, seed, validation)
        rate = step_decay(settings.learning_rate / loss_scale, epochs, len(train))
        decay = 5e-4 * loss_scale
        optimizer = SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay)
        model.compile(optimizer=optimizer, metrics=["accuracy"], **compile_arguments)
        print(f"Seed {seed}: {METHODS[method]}, {epochs} epochs ... ", end="")
        history = model.fit(
            train,
            validation_data=test,
            validation_freq=settings.evaluate_every,
            epochs=epochs,
            verbose=0,
            shuffle=False,
        ).history
        print(f"{history['val_accuracy'][-1]:.2%}", flush=True)
        histories[method] = history["val_accuracy"]
        return test

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = create("teacher")
    fit("teacher", TeacherTrainer(teacher), settings.teacher_epochs)

    plain = strip_heads(create("student"))
    fit("plain", plain, settings.student_epochs, loss=cross_entropy)

    logits = keras.distillation.Distiller(
        strip_heads(teacher),
        strip_heads(create("student")),
        # The default, loss="kl_divergence", divides logits instead of probabilities
        # in Keras 3.15: it turns negative and nothing is learned.
        keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence()),
    )
    # Keras halves the sum of its two losses; this step is as long as the others'.
    fit("logits", logits, settings.student_epochs, loss_scale=0.5, loss=cross_entropy)

    student = create("student")
    test = fit("hsakd", Distiller(teacher, student), settings.student_epochs)
    return student, histories, test


def _summary(accuracies):
    """Returns statistics of accuracies of shape (seeds, epochs)."""
    return {
        "accuracy_mean": float(accuracies[:, -1].mean()),
        "accuracy_std": float(accuracies[:, -1].std(ddof=1))
        if len(accuracies) > 1
        else 0,
        "best_mean": float(accuracies.max(axis=1).mean()),
        "accuracy_by_seed_and_epoch": accuracies.tolist(),
    }


def _draw(results, path):
    pyplot = plots.pyplot()
    settings = results["settings"]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for method, row in results["methods"].items():
        accuracies = 100 * np.array(row["accuracy_by_seed_and_epoch"])
        epochs = settings["evaluate_every"] * np.arange(1, accuracies.shape[1] + 1)
        style = "--" if method == "teacher" else "-"
        label = f"{METHODS[method]}: {row['accuracy_mean']:.1%}"
        (line,) = axes.plot(epochs, accuracies.mean(axis=0), style, label=label)
        axes.fill_between(
            epochs,
            accuracies.min(axis=0),
            accuracies.max(axis=0),
            color=line.get_color(),
            alpha=0.15,
        )
    axes.set(
        xlabel="epoch",
        ylabel=f"accuracy on {results['measured_on']}, %",
        title=f"{settings['examples_per_class']} labelled images a class, "
        f"mean and range of {len(results['seeds'])} seeds",
    )
    axes.legend(title="last epoch", loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _classify(path, test):
    """Shows what a SavedModel says of test images as a camera would give them."""
    rescaling = data.info("digits").preprocessing()
    images, labels = (
        np.concatenate(part) for part in zip(*test.as_numpy_iterator(), strict=True)
    )
    raw = (images - np.array(rescaling.offset)) / np.array(rescaling.scale)
    raw = np.clip(np.round(raw), 0, 255).astype("uint8")
    serve = tf.saved_model.load(path).signatures["serving_default"]
    probabilities = serve(images=tf.constant(raw))["probabilities"].numpy()
    predictions = probabilities.argmax(axis=1)
    print(
        f"\nThe SavedModel, on {len(raw)} raw uint8 images: "
        f"{np.mean(predictions == labels):.2%}. The first five:"
    )
    for row, label in zip(probabilities[:5], labels, strict=False):
        print(f"  a {label} is a {row.argmax()} with probability {row.max():.3f}")
