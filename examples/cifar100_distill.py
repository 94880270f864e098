"""Distils a student from a teacher on CIFAR-100, as the paper does.

    python examples/cifar100_distill.py --teacher teacher.keras --output student.keras

The teacher is what `cifar100_teacher.py` saved.
"""

import argparse

import keras

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teacher", default="teacher.keras")
parser.add_argument("--model", default="wrn_16_2", help="see `keras-hsakd models`")
parser.add_argument("--epochs", type=int, default=240)
parser.add_argument("--data-dir", help="folder of tensorflow-datasets")
parser.add_argument("--output", default="student.keras")
options = parser.parse_args()

keras.utils.set_random_seed(0)
train, test = hsakd.data.load("cifar100", batch_size=64, data_dir=options.data_dir)
teacher = keras.saving.load_model(options.teacher)
student = hsakd.models.create(options.model, num_classes=100)

rate = hsakd.optimizers.step_decay(0.05, options.epochs, steps_per_epoch=len(train))
distiller = hsakd.Distiller(teacher, student, temperature=3.0)
distiller.compile(
    optimizer=hsakd.optimizers.SGD(
        rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    metrics=["accuracy"],
)
distiller.fit(
    train,
    validation_data=test,
    epochs=options.epochs,
    callbacks=[keras.callbacks.TensorBoard("logs/student", write_graph=False)],
)
for name, value in distiller.evaluate(test, heads=True, return_dict=True).items():
    print(f"{name}: {value:.4f}")
student.save(options.output)
