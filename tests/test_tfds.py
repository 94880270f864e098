import time

import numpy as np
import pytest

from keras_hsakd import data
from keras_hsakd.data import datasets

NOWHERE = "https://127.0.0.1:9/cifar-100-binary.tar.gz"


def contents(images, labels):
    return {(x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)}


def test_cifar100_as_tensorflow_datasets_builds_it(cifar100, cifar100_data_dir):
    train, test = data.load("cifar100", data_dir=cifar100_data_dir, batch_size=96)
    assert train.class_names == [f"fine {i}" for i in range(100)]
    assert (train.num_examples, test.num_examples) == (96, 32)
    row = data.info("cifar100")
    (received, labels), *_ = test.as_numpy_iterator()
    raw = np.round((received * row.std + row.mean) * 255).astype("uint8")
    # tensorflow-datasets stores examples in an order of its own.
    assert contents(raw, labels) == contents(*cifar100.test)
    (_, labels), *_ = train.as_numpy_iterator()
    assert sorted(labels) == sorted(cifar100.train[1])


def test_what_cannot_be_had_fails_soon(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets._ARCHIVES, "cifar100", NOWHERE)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="Run `tfds build cifar100"):
        data.load("cifar100", data_dir=str(tmp_path))
    assert time.monotonic() - began < 60  # not the minutes of retries
    assert not list(tmp_path.iterdir())


def test_what_is_there_needs_no_network(cifar100_data_dir, monkeypatch):
    monkeypatch.setitem(datasets._ARCHIVES, "cifar100", NOWHERE)
    assert data.load("cifar100", data_dir=cifar100_data_dir)[0].num_examples == 96
