"""Trains a teacher with auxiliary heads on CIFAR-100, as the paper does.

    python examples/cifar100_teacher.py --output teacher.keras

CIFAR-100 comes through tensorflow-datasets, which downloads it on first use.
"""

import argparse

import keras

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="wrn_40_2", help="see `keras-hsakd models`")
parser.add_argument("--epochs", type=int, default=240)
parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
parser.add_argument("--output", default="teacher.keras")
options = parser.parse_args()

keras.utils.set_random_seed(0)
train, test = hsakd.data.load("cifar100", batch_size=64, data_dir=options.data_dir)
teacher = hsakd.models.create(options.model, num_classes=100)

rate = hsakd.optimizers.step_decay(0.05, options.epochs, steps_per_epoch=len(train))
trainer = hsakd.TeacherTrainer(teacher)
trainer.compile(
    optimizer=hsakd.optimizers.SGD(
        rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    metrics=["accuracy"],
)
trainer.fit(
    train,
    validation_data=test,
    epochs=options.epochs,
    callbacks=[keras.callbacks.TensorBoard("logs/teacher", write_graph=False)],
)
teacher.save(options.output)
