"""A small training of each trainer that can be killed, and goes on when run again.

    python tests/resumable_training.py distiller out [--kill-at-step STEP]

`out` gets the snapshots and, at the end, `final.json`: a checksum of all weights, the
history, and what the callbacks counted. `test_resume.py` and `kill_and_resume.py` run
it; with `--strategy` it is one of several workers, or has several devices.
"""

import argparse
import hashlib
import os
import pathlib
import signal
import stat
import threading
import time

import keras
import numpy as np
import tensorflow as tf

import keras_hsakd
from keras_hsakd import distribution, files
from keras_hsakd.trainers import BaselineTrainer

EPOCHS, STEPS, BATCH_SIZE = 4, 10, 12


def network(name, dropout, heads=True):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name=f"{name}_conv")(images)
    x = keras_hsakd.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(dropout)(keras.layers.ReLU()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(10, name=f"{name}_logits")(x)
    outputs = {"logits": logits, "aux_1": keras.layers.Dense(40)(x)}
    return keras.Model(images, outputs if heads else logits, name=name)


TRAINERS = {
    "teacher": lambda make: keras_hsakd.TeacherTrainer(make("a")),
    "frozen": lambda make: keras_hsakd.TeacherTrainer(make("a"), freeze_backbone=True),
    "distiller": lambda make: keras_hsakd.Distiller(make("a"), make("b")),
    "features": lambda make: keras_hsakd.Distiller(
        make("a", heads=False),
        make("b", heads=False),
        terms=[
            keras_hsakd.terms.CrossEntropy(),
            keras_hsakd.terms.Hint(on="last_stage", regressor=True),
            keras_hsakd.terms.Relational(weight=0.1),
        ],
    ),
    "mutual": lambda make: keras_hsakd.MutualDistiller([make("a"), make("b")]),
    "baseline": lambda make: BaselineTrainer(make("a", heads=False)),
}


class Counting(keras.callbacks.Callback):
    """A user's callback with a state; steps take a moment, and one may be the last."""

    def __init__(self, seconds, last_step):
        super().__init__()
        self.seconds = seconds
        self.steps_left = last_step or float("inf")
        self.seen = []
        self.noise = np.zeros(2)

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(self.seconds)
        self.steps_left -= 1
        if not self.steps_left:
            kill()
        self.seen.append([batch, logs["loss"]])
        self.noise += np.random.normal(size=2)  # NumPy's random state goes on, too

    def get_state(self):
        return {"seen": self.seen, "noise": self.noise}

    def set_state(self, state):
        self.seen, self.noise = state["seen"], state["noise"]


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(number):
    """Lets this process die when a file is half written, the given time."""
    writes = 0
    fsync = os.fsync

    def fsync_or_die(descriptor):
        nonlocal writes
        status = os.fstat(descriptor)
        writes += stat.S_ISREG(status.st_mode)
        if writes == number:
            os.truncate(f"/proc/self/fd/{descriptor}", status.st_size // 2)
            kill()
        fsync(descriptor)

    files.os.fsync = fsync_or_die


def train(method, output, options):
    callbacks = [keras.callbacks.EarlyStopping("val_loss", patience=50)]
    # Learning rates by a schedule for some, by a callback for the others.
    if method in ("teacher", "frozen"):
        optimizer = keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.05, EPOCHS * STEPS)
        )
    else:
        optimizer = keras_hsakd.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3)
        plateau = keras.callbacks.ReduceLROnPlateau(
            "loss", mode="min", factor=0.5, patience=0, min_delta=0.2
        )
        callbacks.append(plateau)
    if distribution.worker_index() == 0:
        callbacks += [keras.callbacks.CSVLogger(output / "log.csv")]
    callbacks.append(Counting(options.sleep, options.kill_at_step))
    train, test = keras_hsakd.data.load(
        "digits", image_size=8, batch_size=BATCH_SIZE, limit=STEPS * BATCH_SIZE
    )

    def make(name, **arguments):
        made = network(name, options.dropout, **arguments)
        return keras_hsakd.synchronize_batch_norm(made)

    begin = time.monotonic()
    if options.kill_after is not None:
        timer = threading.Timer(options.kill_after, kill)
        timer.daemon = True
        timer.start()
    trainer = TRAINERS[method](make).compile(optimizer, metrics=["accuracy"])
    resume = keras_hsakd.Resume(output / "snapshots", options.every_steps)
    history = trainer.fit(
        train,
        validation_data=test,
        epochs=EPOCHS,
        callbacks=[*callbacks, resume],
        verbose=0,
    )
    digest = hashlib.sha256()
    for value in trainer.get_weights():
        digest.update(value.tobytes())
    if distribution.worker_index():
        return None
    return {
        "weights": digest.hexdigest(),
        "values": [np.ravel(v).tolist() for v in trainer.network.get_weights()],
        "history": history.history,
        "epochs": history.epoch,
        "callbacks": [
            {k: np.asarray(v).tolist() for k, v in callback.get_state().items()}
            for callback in callbacks
            if isinstance(callback, Counting)
        ],
        "seconds": time.monotonic() - begin,
        "log": (output / "log.csv").read_text(),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=TRAINERS)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--every-steps", type=int, default=3)
    parser.add_argument("--sleep", type=float, default=0.05)
    # Replicas draw the same masks for different images, one device does not.
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--kill-at-step", type=int, help="number of steps from here")
    parser.add_argument("--kill-after", type=float, help="seconds of training")
    parser.add_argument("--kill-in-write", type=int, help="number of a write to disk")
    parser.add_argument("--strategy", choices=distribution.STRATEGIES)
    options = parser.parse_args(arguments)

    strategy = distribution.make_strategy(options.strategy)
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    options.output.mkdir(exist_ok=True)
    if options.kill_in_write:
        kill_in_write(options.kill_in_write)
    with strategy.scope():
        final = train(options.method, options.output, options)
    if final:
        files.write_json(options.output / "final.json", final)


if __name__ == "__main__":
    main()
