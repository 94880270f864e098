r"""Distils a student on several machines, or in several processes of one.

Start it on each of them, with `TF_CONFIG` saying who is who; in two terminals:

    CLUSTER='"cluster": {"worker": ["127.0.0.1:5001", "127.0.0.1:5002"]}'
    TF_CONFIG="{$CLUSTER, \"task\": {\"type\": \"worker\", \"index\": 0}}" \
        python examples/multi_worker.py
    TF_CONFIG="{$CLUSTER, \"task\": {\"type\": \"worker\", \"index\": 1}}" \
        python examples/multi_worker.py

The teacher comes from `cifar100_teacher.py`. Whatever ends the training, the same
commands again go on with it; all workers must see the folder `snapshots`.
"""

import argparse

import keras
import tensorflow as tf

import keras_hsakd as hsakd
from keras_hsakd.distribution import worker_index

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="cifar100")
parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
parser.add_argument("--teacher", default="teacher.keras")
parser.add_argument("--model", default="wrn_16_2")
parser.add_argument("--epochs", type=int, default=240)
parser.add_argument("--batch-size", type=int, default=64, help="of all workers")
parser.add_argument("--snapshots", default="snapshots")
options = parser.parse_args()

# Before anything else, and with it all that has variables.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
train, test = hsakd.data.load(
    options.data, batch_size=options.batch_size, data_dir=options.data_dir
)
keras.utils.set_random_seed(0)
with strategy.scope():
    teacher = keras.saving.load_model(options.teacher, compile=False)
    student = hsakd.models.create(
        options.model, len(train.class_names), teacher.input_shape[1:]
    )
    hsakd.synchronize_batch_norm(student)
    schedule = hsakd.optimizers.step_decay(0.05, options.epochs, len(train))
    optimizer = hsakd.optimizers.SGD(
        schedule, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    distiller = hsakd.Distiller(teacher, student)
    distiller.compile(optimizer, metrics=["accuracy"])
    is_chief = worker_index() == 0

distiller.fit(
    train,
    validation_data=test,
    epochs=options.epochs,
    callbacks=[hsakd.Resume(options.snapshots, every_seconds=600)],
    verbose=2 if is_chief else 0,
)
if is_chief:
    student.save("student.keras")
    print("Wrote student.keras")
