import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hsakd
from keras_hsakd import data

MODULES = ["keras_hsakd"] + [
    module.name
    for module in pkgutil.walk_packages(keras_hsakd.__path__, "keras_hsakd.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(data, name) for name in data.__all__}
    names.update(np=np, tf=tf, keras=keras, keras_hsakd=keras_hsakd)
    results = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [
        example
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(examples) > 60
