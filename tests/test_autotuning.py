"""What a training reads is not tuned by TensorFlow, whose end it would wait for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import Distiller, data
from keras_hsakd.autotuning import without_autotuning
from keras_hsakd.data.pipelines import train_and_test
from keras_hsakd.trainers import BaselineTrainer


def is_tuned(dataset):
    return dataset.options().autotune.enabled is not False


def of_tensorflow(batch):
    return tf.data.Dataset.from_tensor_slices(batch).batch(4)


def test_the_same_is_read_in_the_same_order():
    numbers = tf.data.Dataset.range(50).map(tf.square, tf.data.AUTOTUNE).batch(8)
    untuned = without_autotuning(numbers)
    assert is_tuned(numbers)
    assert not is_tuned(untuned)
    assert untuned.cardinality() == numbers.cardinality()
    np.testing.assert_equal(
        np.concatenate(list(untuned.as_numpy_iterator())), np.arange(50) ** 2
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_who_says_something_is_heard(enabled):
    options = tf.data.Options()
    options.autotune.enabled = enabled
    dataset = tf.data.Dataset.range(3).with_options(options)
    assert without_autotuning(dataset) is dataset


def test_our_own_data_are_not_tuned():
    source = data.ArraySource(np.zeros((8, 9, 9, 3), "uint8"), np.arange(8), 9)
    train, test = train_and_test(source, source, 4, 0, data.Augmentation(), None, "ab")
    assert not is_tuned(train)
    assert not is_tuned(test)
    assert not is_tuned(train.share(2, 0, 1))


@pytest.mark.parametrize("weights", [None, {0: 1.0, 1: 2.0, 2: 3.0}])
def test_what_a_trainer_is_given_is_not_tuned(
    tiny_network, batch, monkeypatch, weights
):
    given = {}

    def fit(self, x, *arguments, validation_data, **options):
        given.update(x=x, validation_data=validation_data)

    monkeypatch.setattr(keras.Model, "fit", fit)
    trainer = BaselineTrainer(tiny_network(heads=0))
    trainer.compile(keras.optimizers.SGD(0.1))
    trainer.fit(
        of_tensorflow(batch),
        validation_data=of_tensorflow(batch),
        class_weight=weights,
        verbose=0,
    )
    assert not is_tuned(given["x"])
    assert not is_tuned(given["validation_data"])


def test_what_is_evaluated_is_not_tuned(tiny_network, batch, monkeypatch):
    given = []
    evaluate = keras.Model.evaluate

    def noted(self, x, *arguments, **options):
        given.append(x)
        return evaluate(self, x, *arguments, **options)

    monkeypatch.setattr(keras.Model, "evaluate", noted)
    distiller = Distiller(tiny_network("teacher"), tiny_network("student"))
    distiller.compile(keras.optimizers.SGD(0.1))
    distiller.evaluate(of_tensorflow(batch), verbose=0)
    assert [is_tuned(x) for x in given] == [False]
