"""What networks that teach each other do otherwise than one that is trained."""

import keras
import numpy as np
import numpy_reference as reference
import pytest

from keras_hsakd import MutualDistiller, optimizers, strip_heads, terms

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
        losses = reference.teacher_losses(own, labels, weights)
        for peer in outputs[:i] + outputs[i + 1 :]:
            divergences = reference.student_losses(peer, own, labels, 2.0, weights)
            for name, value in divergences.items():
                if name.startswith("kl_"):
                    losses[name] = losses.get(name, 0) + value / (count - 1)
        expected |= {f"net_{i + 1}_{name}": value for name, value in losses.items()}
    logs = distiller.train_on_batch(images, labels, weights, return_dict=True)
    assert logs.pop("loss") == pytest.approx(sum(expected.values()), rel=1e-5)
    assert set(logs) == set(expected)
    for name, value in expected.items():
        # The divergences are differences of nearly equal numbers.
        assert logs[name] == pytest.approx(value, rel=1e-4), name


def squared(of_teacher):
    """Returns a term of the outputs of one role alone."""

    def function(teacher, student, labels):
        moved, kept = (teacher, student) if of_teacher else (student, teacher)
        return keras.ops.sum(moved**2, axis=-1) + 0 * keras.ops.sum(kept, axis=-1)

    return terms.Function(function, on=["logits", "aux_1", "aux_2"])


@pytest.mark.parametrize("of_teacher", [True, False])
def test_gradients_flow_into_a_learner_and_not_into_its_teacher(
    make, batch, of_teacher
):
    distiller = make(terms=[squared(of_teacher)]).compile(sgd(), **EAGER)
    trained = distiller.trainable_variables
    before = [keras.ops.convert_to_numpy(v).copy() for v in trained]
    distiller.train_on_batch(*batch)
    moved = [
        np.any(old != keras.ops.convert_to_numpy(new))
        for old, new in zip(before, trained, strict=True)
    ]
    # Biases before batch normalization stand still.
    assert not any(moved) if of_teacher else sum(moved) > 0.7 * len(moved)


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


@keras.saving.register_keras_serializable("test_mutual")
def near(teacher, student, labels):
    """A loss of somebody's own."""
    return keras.ops.mean((teacher - student) ** 2, axis=-1)


def test_a_function_is_one_term_of_all_networks(make, batch, tmp_path):
    distiller = make(terms=[terms.CrossEntropy(), near])
    distiller.compile(sgd(), **EAGER)
    assert len(distiller.terms) == 2
    distiller.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    logs = [d.train_on_batch(*batch, return_dict=True) for d in (distiller, loaded)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_teachers_with_other_numbers_of_stages(tiny_network):
    networks = [
        strip_heads(tiny_network(f"n{stages}", heads=stages)) for stages in (2, 3, 2)
    ]
    with pytest.raises(ValueError, match="same number of stages.*{'n3': 3, 'n2': 2}"):
        MutualDistiller(networks, terms=[terms.Attention()])
    MutualDistiller(networks, terms=[terms.Attention(on="stage_1")])
    wide = strip_heads(tiny_network("wide", width=6))
    networks = [networks[0], wide, strip_heads(tiny_network("tiny"))]
    with pytest.raises(ValueError, match="same shape of all teachers"):
        MutualDistiller(networks, terms=[terms.Hint(on="stage_1")])
