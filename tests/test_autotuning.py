"""What our trainings read is not tuned by TensorFlow, whose end they would wait for."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hsakd import Distiller, data, distribution
from keras_hsakd.autotuning import without_autotuning
from keras_hsakd.data.pipelines import train_and_test


def is_tuned(dataset):
    return dataset.options().autotune.enabled is not False


@pytest.fixture
def ours(batch):
    """Returns a training and a test data set of ours, of three batches."""
    images, labels = batch
    source = data.ArraySource(images.astype("uint8"), labels, 8)
    return train_and_test(source, source, 4, 0, data.Augmentation(), None, "abc")


@pytest.fixture
def distiller(tiny_network):
    distiller = Distiller(tiny_network("teacher"), tiny_network("student"))
    return distiller.compile(keras.optimizers.SGD(0.1), run_eagerly=True)


def test_the_same_is_read_in_the_same_order():
    numbers = tf.data.Dataset.range(50).map(tf.square, tf.data.AUTOTUNE).batch(8)
    untuned = without_autotuning(numbers)
    assert is_tuned(numbers) and not is_tuned(untuned)
    assert untuned.cardinality() == numbers.cardinality()
    np.testing.assert_equal(
        np.concatenate(list(untuned.as_numpy_iterator())), np.arange(50) ** 2
    )


def test_ours_are_not_tuned_where_they_are_trained_on(distiller, ours, monkeypatch):
    given = {}

    def fit(self, x, *arguments, validation_data, **options):
        given.update(x=x, validation_data=validation_data)

    monkeypatch.setattr(keras.Model, "fit", fit)
    train, test = ours
    distiller.fit(train, validation_data=test, verbose=0)
    assert not is_tuned(given["x"]) and not is_tuned(given["validation_data"])
    # What is made of them, and what is not, is read as people say.
    mapped = train.map(lambda images, labels: (images, labels))
    others = tf.data.Dataset.from_tensors(next(iter(test)))
    distiller.fit(mapped, validation_data=others, verbose=0)
    assert given == {"x": mapped, "validation_data": others}
    assert is_tuned(mapped)


def test_ours_are_not_tuned_where_they_are_measured_on(distiller, ours, monkeypatch):
    given = []
    evaluate = keras.Model.evaluate

    def noted(self, x, *arguments, **options):
        given.append(x)
        return evaluate(self, x, *arguments, **options)

    monkeypatch.setattr(keras.Model, "evaluate", noted)
    distiller.evaluate(ours[1], verbose=0)
    assert [is_tuned(x) for x in given] == [False]


def test_the_share_of_a_worker_is_not_tuned(distiller, ours, monkeypatch):
    made = types.SimpleNamespace()

    def from_function(share):
        made.share = share(
            types.SimpleNamespace(num_input_pipelines=2, input_pipeline_id=1)
        )
        return made

    strategy = types.SimpleNamespace(
        num_replicas_in_sync=2, distribute_datasets_from_function=from_function
    )
    monkeypatch.setattr(distribution, "_strategy", lambda model: strategy)
    assert distribution.distributed(ours[0], distiller) is made
    assert not is_tuned(made.share)


def test_the_images_that_a_cache_is_made_of_are_not_tuned(ours):
    images = ours[0].pipeline.variant(0, range(3), batch_size=2, seed=0)
    assert not is_tuned(images)
