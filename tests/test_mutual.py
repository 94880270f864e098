"""What networks that teach each other do otherwise than one that is trained."""

import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd import MutualDistiller, optimizers, strip_heads

# Where tracing is not what is tested, TensorFlow need not trace. JAX is slow without.
EAGER = {"run_eagerly": keras.backend.backend() == "tensorflow"}


@pytest.fixture
def make(tiny_network):
    def make(count=2, **options):
        return MutualDistiller(
            [tiny_network(f"n{i}", width=4 + i) for i in range(count)], **options
        )

    return make


def sgd():
    return optimizers.SGD(0.05, momentum=0.9, nesterov=True)


def numpy_outputs(network, images, training):
    """Returns a network's outputs for its views of images, leaving it as it was."""
    plain = not isinstance(network.output, dict)
    kept = network.get_weights()
    outputs = network(
        images if plain else reference.rotated_views(images), training=training
    )
    outputs = {"logits": outputs} if plain else outputs
    outputs = {k: keras.ops.convert_to_numpy(v) for k, v in outputs.items()}
    network.set_weights(kept)
    return outputs


@pytest.mark.parametrize(
    ("count", "weighted", "heads"),
    [(2, False, True), (3, True, True), (2, True, False)],
)
def test_losses(make, batch, count, weighted, heads):
    images, labels = batch
    weights = np.linspace(0, 2, len(labels)).astype("float32") if weighted else None
    distiller = make(count, temperature=2.0)
    if not heads:
        plain = [strip_heads(network) for network in distiller.networks]
        distiller = MutualDistiller(plain, temperature=2.0)
    distiller.compile(sgd(), **EAGER)
    outputs = [numpy_outputs(n, images, training=True) for n in distiller.networks]
    expected = {}
    for i, own in enumerate(outputs):
        terms = reference.teacher_losses(own, labels, weights)
        for peer in outputs[:i] + outputs[i + 1 :]:
            divergences = reference.student_losses(peer, own, labels, 2.0, weights)
            for name, value in divergences.items():
                if name.startswith("kl_"):
                    terms[name] = terms.get(name, 0) + value / (count - 1)
        expected |= {f"net_{i + 1}_{name}": value for name, value in terms.items()}
    logs = distiller.train_on_batch(images, labels, weights, return_dict=True)
    assert logs.pop("loss") == pytest.approx(sum(expected.values()), rel=1e-5)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        # The divergences are differences of nearly equal numbers.
        assert logs[name] == pytest.approx(value, rel=1e-4), name


def test_gradients_flow_into_a_learner_and_not_into_its_teacher(make, batch):
    """With one network's terms alone, no other network learns."""
    distiller = make()
    names = set(distiller._term_metrics)
    only_second = {name: 0 for name in names if name.startswith("net_1_")}
    distiller.compile(sgd(), loss_weights=only_second, **EAGER)
    before = [
        [v.copy() for v in map(keras.ops.convert_to_numpy, n.trainable_variables)]
        for n in distiller.networks
    ]
    distiller.train_on_batch(*batch)
    moved = [
        [
            bool(np.any(old != keras.ops.convert_to_numpy(new)))
            for old, new in zip(olds, network.trainable_variables, strict=True)
        ]
        for olds, network in zip(before, distiller.networks, strict=True)
    ]
    assert not any(moved[0])
    assert sum(moved[1]) > 0.7 * len(moved[1])  # biases before batch norm stand still


def test_evaluation_is_of_each_network(make, batch):
    images, labels = batch
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]
    distiller = make().compile(sgd(), metrics=metrics, **EAGER)
    history = distiller.fit(images, labels, validation_data=batch, verbose=0).history
    assert {"val_loss", "val_net_1_accuracy", "val_net_2_accuracy"} < set(history)
    assert not any(name.startswith("val_net_1_kl") for name in history)
    results = distiller.evaluate(images, labels, return_dict=True, verbose=0)
    predictions = distiller.predict(images, batch_size=5, verbose=0)
    total = 0
    for number, network in enumerate(distiller.networks, start=1):
        logits = keras.ops.convert_to_numpy(network(images)["logits"])
        np.testing.assert_allclose(
            predictions[f"net_{number}"], logits, rtol=1e-4, atol=1e-5
        )
        accuracy = np.mean(logits.argmax(axis=1) == labels)
        assert results[f"net_{number}_accuracy"] == pytest.approx(accuracy)
        total += reference.cross_entropy(labels, logits).mean()
    assert results["loss"] == pytest.approx(total, rel=1e-4)
    with_heads = distiller.evaluate(
        images, labels, heads=True, return_dict=True, verbose=0
    )
    heads = numpy_outputs(distiller.networks[1], images, training=False)
    hits = heads["aux_2"].argmax(axis=1) == reference.joint_labels(labels)
    assert with_heads["net_2_aux_2_joint_accuracy"] == pytest.approx(np.mean(hits))


def test_a_saved_one_goes_on_where_it_was(make, batch, tmp_path):
    distiller = make(temperature=2.0)
    distiller.compile(sgd(), metrics=["accuracy"], **EAGER)
    distiller.fit(*batch, shuffle=False, verbose=0)
    distiller.save(tmp_path / "mutual.keras")
    copy = keras.saving.load_model(tmp_path / "mutual.keras")
    assert copy.temperature == 2.0
    histories = [
        d.fit(*batch, shuffle=False, verbose=0).history for d in (distiller, copy)
    ]
    assert histories[0] == histories[1]
    for old, new in zip(distiller.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_loss_is_scaled_for_either_network(tiny_network, order):
    networks = [tiny_network("a")]
    keras.config.set_dtype_policy("mixed_float16")
    try:
        networks.append(tiny_network("b"))
    finally:
        keras.config.set_dtype_policy("float32")
    trainer = MutualDistiller([networks[i] for i in order]).compile(sgd())
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)


def test_networks_that_do_not_fit(tiny_network):
    with pytest.raises(ValueError, match="two or more networks.*Received: 1"):
        MutualDistiller([tiny_network()])
    for other, message in (
        (
            tiny_network("b", heads=1),
            r"same number of auxiliary heads each.*\[2, 2, 1\]",
        ),
        (tiny_network("b", num_classes=5), "`net_1` and `net_3` to have the same num"),
        (
            strip_heads(tiny_network("b")),
            "`net_3` to have auxiliary heads both",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            MutualDistiller([tiny_network("a"), tiny_network("a"), other])
    same = tiny_network()
    with pytest.raises(ValueError, match="`net_1` and `net_2` to share no variables"):
        MutualDistiller([same, same])


def test_an_unknown_divergence(make):
    with pytest.raises(ValueError, match="`divergence` to be one of .*Received: .*crd"):
        make(divergence="crd")
