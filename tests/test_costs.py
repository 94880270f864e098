"""The arithmetic of what a training costs, against numbers made by hand."""

import pytest

from keras_hsakd import Distiller, MutualDistiller, TeacherTrainer, models, strip_heads
from keras_hsakd.compat import shapes_only
from keras_hsakd.heads import multiply_adds_by_part, signature
from keras_hsakd.runs.costs import image_multiply_adds, spent
from keras_hsakd.runs.timing import ConstantTeacher
from keras_hsakd.terms import KL, CrossEntropy
from keras_hsakd.trainers import BaselineTrainer


def test_parts_of_a_network(tiny_network):
    network = tiny_network(num_classes=3, size=8, width=4, heads=2)
    stages = 64 * 27 * 4 + 16 * 36 * 4  # at 8 x 8 and 4 x 4 positions
    assert multiply_adds_by_part(network) == {
        "backbone": stages + 4 * 3,
        "aux_1": 64 * 36 * 4 + 4 * 12,
        "aux_2": 16 * 36 * 4 + 4 * 12,
    }
    plain = strip_heads(network)
    assert multiply_adds_by_part(plain) == {"backbone": stages + 4 * 3}


@pytest.fixture
def pair(tiny_network):
    """Returns a teacher of more heads than its student, and this."""
    teacher = tiny_network(num_classes=3, size=8, width=8, heads=2)
    return teacher, tiny_network(num_classes=3, size=8, width=4, heads=1)


def test_multiply_adds_of_each_way(pair):
    teacher, student = pair
    of_teacher, of_student = map(multiply_adds_by_part, pair)
    # The teacher's last head teaches.
    asked = of_teacher["backbone"] + of_teacher["aux_2"]
    learns = sum(of_student.values())
    everything = sum(of_teacher.values())
    assert image_multiply_adds(TeacherTrainer(teacher)) == 4 * 3 * everything
    assert image_multiply_adds(Distiller(*pair)) == 4 * (3 * learns + asked)
    few = Distiller(*pair, sampled_views=2)
    assert image_multiply_adds(few) == 2 * (3 * learns + asked)
    cached = Distiller(ConstantTeacher(signature(teacher)), student)
    assert image_multiply_adds(cached) == 4 * 3 * learns
    plain = strip_heads(student)
    backbone = of_student["backbone"]
    assert image_multiply_adds(BaselineTrainer(plain)) == 3 * backbone
    logits = Distiller(strip_heads(teacher), plain)
    assert image_multiply_adds(logits) == 3 * backbone + of_teacher["backbone"]


def test_what_no_term_needs_costs_nothing(pair):
    of_teacher, of_student = map(multiply_adds_by_part, pair)
    terms = [CrossEntropy(), KL(3.0)]
    alone = Distiller(*pair, terms=terms)
    expected = 4 * (3 * of_student["backbone"] + of_teacher["backbone"])
    assert image_multiply_adds(alone) == expected
    labels = Distiller(*pair, terms=[CrossEntropy(), KL(3.0, weight=0)])
    assert image_multiply_adds(labels) == 4 * 3 * of_student["backbone"]


def test_what_is_frozen_is_passed_forward_alone(pair):
    teacher, _ = pair
    parts = multiply_adds_by_part(teacher)
    heads = parts["aux_1"] + parts["aux_2"]
    frozen = TeacherTrainer(teacher, freeze_backbone=True)
    assert image_multiply_adds(frozen) == 4 * (parts["backbone"] + 3 * heads)


def test_networks_that_learn_together(tiny_network):
    sizes = {"num_classes": 3, "size": 8, "heads": 1}
    networks = [tiny_network(width=width, **sizes) for width in (4, 8)]
    total = sum(sum(multiply_adds_by_part(network).values()) for network in networks)
    assert image_multiply_adds(MutualDistiller(networks)) == 4 * 3 * total


def test_several_teachers_run_once_each(tiny_network):
    sizes = {"num_classes": 3, "size": 8}
    first, second = (
        tiny_network(width=w, heads=heads, **sizes) for w, heads in ((8, 1), (4, 2))
    )
    student = tiny_network(width=4, heads=1, **sizes)
    parts = multiply_adds_by_part(second)
    more = parts["backbone"] + parts["aux_2"]
    both = image_multiply_adds(Distiller([first, second], student))
    assert both - image_multiply_adds(Distiller(first, student)) == 4 * more


@pytest.mark.parametrize(
    ("teacher", "student", "ratio"),
    [
        ("wrn_40_2", "wrn_16_2", 2.07),
        ("resnet56", "resnet20", 2.03),
        ("resnet32x4", "resnet8x4", 2.98),
    ],
)
def test_what_a_cache_saves(teacher, student, ratio):
    with shapes_only():
        networks = [models.create(name, 100) for name in (teacher, student)]
    asked, learns = (sum(multiply_adds_by_part(each).values()) for each in networks)
    assert (3 * learns + asked) / (3 * learns) == pytest.approx(ratio, abs=0.01)


RECORD = {
    "image_multiply_adds": 300,
    "training": {"batch_size": 4},
    "origin": None,
    "epochs_done": 3,
    "images": {"train": 11},
}


def test_what_a_run_took():
    assert spent(RECORD) == (3 * 11 * 300, 0)
    whole = {"batch_size": 4, "drop_remainder": True}
    assert spent({**RECORD, "training": whole}) == (3 * 8 * 300, 0)
    origin = {"cache": {"multiply_adds": 70}}
    assert spent({**RECORD, "origin": origin}) == (3 * 11 * 300, 70)
    assert spent({**RECORD, "origin": {}}) == (3 * 11 * 300, 0)
    del (elsewhere := dict(RECORD))["image_multiply_adds"]
    assert spent(elsewhere) is None
