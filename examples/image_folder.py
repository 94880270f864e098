"""From a folder of images to a distilled, exported student.

    python examples/image_folder.py photos --output serving/student/1

The folder holds `train/<class>/<image>` and `test/<class>/<image>`.
"""

import argparse

import keras

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("--image-size", type=int, default=32)
parser.add_argument("--teacher", default="resnet20", help="see `keras-hsakd models`")
parser.add_argument("--student", default="resnet8")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--output", default="serving/student/1")
options = parser.parse_args()

keras.utils.set_random_seed(0)
mean, std = hsakd.data.IMAGENET_MEAN, hsakd.data.IMAGENET_STD
train, test = hsakd.data.image_folder(
    options.folder, image_size=options.image_size, corrupt="skip", mean=mean, std=std
)
num_classes = len(train.class_names)
print(f"{train.num_examples} images to train, {test.num_examples} to test")
print(f"{num_classes} classes: {', '.join(train.class_names)}")


def sgd():
    """Returns the authors' optimizer; it belongs to one training."""
    rate = hsakd.optimizers.step_decay(0.05, options.epochs, len(train))
    return hsakd.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


shape = (options.image_size, options.image_size, 3)
teacher = hsakd.models.create(options.teacher, num_classes, input_shape=shape)
trainer = hsakd.TeacherTrainer(teacher).compile(sgd(), metrics=["accuracy"])
trainer.fit(train, validation_data=test, epochs=options.epochs)

student = hsakd.models.create(options.student, num_classes, input_shape=shape)
distiller = hsakd.Distiller(teacher, student).compile(sgd(), metrics=["accuracy"])
distiller.fit(train, validation_data=test, epochs=options.epochs)

preprocessing = hsakd.data.rescaling(mean, std)
print(hsakd.export.saved_model(student, options.output, preprocessing))
