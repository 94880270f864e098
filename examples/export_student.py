"""Exports a student trained on CIFAR-100 for TF Serving, and classifies images with it.

    python examples/export_student.py student.keras serving/student/1 cat.jpg
    tensorflow_model_server --model_name=student --model_base_path=$PWD/serving/student

The SavedModel has no auxiliary heads, and takes raw uint8 images of 32 x 32 pixels.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

import keras_hsakd as hsakd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("student", help="what `cifar100_distill.py` saved")
parser.add_argument("output", help="folder to make; its last part is the version")
parser.add_argument("images", nargs="*", help="image files to classify")
options = parser.parse_args()

student = keras.saving.load_model(options.student)
preprocessing = hsakd.data.info("cifar100").preprocessing()
hsakd.export.saved_model(student, options.output, preprocessing)

# From here on as a server does it: nothing of this package is needed.
serve = tf.saved_model.load(options.output).signatures["serving_default"]
size = serve.structured_input_signature[1]["images"].shape[1:3]
for path in options.images:
    image = keras.utils.load_img(path, target_size=size, interpolation="bilinear")
    images = tf.constant(np.asarray(image, "uint8")[np.newaxis])
    probabilities = serve(images=images)["probabilities"].numpy()[0]
    best = probabilities.argsort()[::-1][:3]
    print(path, *(f"class {i}: {probabilities[i]:.3f}" for i in best), sep="  ")
