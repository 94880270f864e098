"""The arithmetic of what a training costs, against numbers made by hand."""

import dataclasses

import pytest

from keras_hsakd import models, strip_heads
from keras_hsakd.compat import shapes_only
from keras_hsakd.heads import head_names, multiply_adds_by_part
from keras_hsakd.runs import costs
from keras_hsakd.runs.costs import Way

TEACHER = {"backbone": 1000, "aux_1": 200, "aux_2": 300, "aux_3": 50}
STUDENT = {"backbone": 100, "aux_1": 20, "aux_2": 3}
# The teacher's last two heads teach.
PAIRS = [("aux_2", "aux_1"), ("aux_3", "aux_2")]


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


def test_multiply_adds_of_each_way():
    ways = costs.ways(["aux_1", "aux_2", "aux_3"], PAIRS, 4, 2, "float32", "mixed")
    counted = {
        name: costs.image_multiply_adds(way, TEACHER, STUDENT)
        for name, way in ways.items()
    }
    student, teacher = 123, 1350  # with the heads that learn and teach
    assert counted == {
        "teacher": 4 * 3 * 1550,
        "plain student": 3 * 100,
        "plain distillation": 3 * 100 + 1000,
        "the method": 4 * (3 * student + teacher),
        "cached teacher": 4 * 3 * student,
        "2 of 4 views": 2 * (3 * student + teacher),
        "2 of 4 views, cached teacher": 2 * 3 * student,
        "last head alone": 4 * (3 * 103 + 1050),
        "mixed": 4 * (3 * student + teacher),
    }
    assert {way.precision for way in ways.values()} == {"float32", "mixed"}


def test_ways_that_are_none_are_left_out():
    ways = costs.ways(["aux_1"], [("aux_1", "aux_1")], 2, 2, "mixed", "mixed")
    assert list(ways) == [
        *("teacher", "plain student", "plain distillation"),
        *("the method", "cached teacher"),
    ]


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
    parts = [multiply_adds_by_part(network) for network in networks]
    heads = tuple(head_names(networks[1]))
    method = Way(kind="distill", views=4, heads=heads, teaching=heads)
    cached = dataclasses.replace(method, cached=True)
    exact, saved = (costs.image_multiply_adds(way, *parts) for way in (method, cached))
    assert exact / saved == pytest.approx(ratio, abs=0.01)


def parts(model, head):
    network = TEACHER if model == "teacher" else STUDENT
    return network if head == "copy" else {"backbone": 100, "aux_1": 1, "aux_2": 1}


def spent(kind, options=(), origin=None, own=None, **training):
    record = {
        "kind": kind,
        "options": dict(options),
        "training": {"model": "student", **training},
        "origin": origin,
        "epochs_done": 3,
        "images": {"train": 5},
        **({"parts": own} if own else {}),
    }
    total, cache = costs.spent(record, 4, parts)
    assert total % 15 == 0
    return total // 15 if not cache else (total // 15, cache)


def test_what_a_run_took():
    """An image in a step, by the record of the run."""
    teacher = {"model": "teacher"}
    assert spent("baseline") == 3 * 100
    assert spent("teacher", model="teacher") == 4 * 3 * 1550
    # On a frozen backbone.
    frozen = spent("teacher", origin=teacher, model="teacher")
    assert frozen == 4 * (1000 + 3 * 550)
    assert spent("teacher", {"sampled_views": 2}) == 2 * 3 * 123
    assert spent("linear", origin=teacher) == 100
    assert spent("mutual", {"peers": None}) == 4 * 3 * 2 * 123
    assert spent("mutual", {"peers": ["teacher"]}) == 4 * 3 * (123 + 1550)
    # The teacher's last two heads teach.
    assert spent("distill", origin=teacher) == 4 * (3 * 123 + 1350)
    light = {"model": "teacher", "settings": {"training": {"head": "light"}}}
    assert spent("distill", origin=light, head="light") == 4 * (3 * 102 + 102)


def test_what_is_frozen_is_passed_forward_alone():
    frozen = {"freeze_backbone": True}
    teacher = {"model": "teacher"}
    assert spent("baseline", **frozen) == 100
    assert spent("teacher", **frozen) == 4 * (100 + 3 * 23)
    assert spent("distill", origin=teacher, **frozen) == 4 * (100 + 3 * 23 + 1350)
    # A peer of another network has no weights to be frozen.
    assert spent("mutual", **frozen) == 4 * 2 * (100 + 3 * 23)
    peers = {"peers": ["student", "teacher"]}
    expected = 4 * (2 * (100 + 3 * 23) + 3 * 1550)
    assert spent("mutual", peers, **frozen) == expected
    arguments = (["aux_1"], PAIRS, 4, 4, "float32")
    for name, way in costs.ways(*arguments, frozen=True).items():
        assert way.frozen == (name != "teacher")
    for name, way in costs.ways(*arguments, frozen_teacher=True).items():
        assert way.frozen == (name == "teacher")


def test_parts_in_the_record_are_those_of_whose_they_are():
    """Two networks of one name have other heads, as on a frozen backbone."""
    plain = {"model": "student", "parts": {"backbone": 100}}
    own = {"backbone": 100, "aux_1": 7}
    assert spent("teacher", origin=plain, own=own) == 4 * (100 + 3 * 7)
    other = {"model": "student", "parts": {"backbone": 100, "aux_1": 9, "aux_2": 50}}
    assert spent("distill", origin=other, own=own) == 4 * (3 * 107 + 150)
    assert spent("distill", origin=other) == 4 * (3 * 123 + 159)
    assert spent("mutual", own=own) == 4 * 3 * 2 * 107


def test_images_that_fill_no_batch_are_not_paid_for():
    record = {
        "kind": "baseline",
        "options": {},
        "training": {"model": "student", "batch_size": 4, "drop_remainder": True},
        "origin": None,
        "epochs_done": 3,
        "images": {"train": 11},
    }
    assert costs.spent(record, 4, parts).training == 3 * 8 * 300


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sampled_views": 2}, 2 * (3 * 123 + 1350)),
        ({"heads": False, "method": "kd"}, 3 * 100 + 1000),
        ({"terms": ["KL()", "KL(on='aux_2')"]}, 4 * (3 * 103 + 1050)),
        ({"terms": ["KL(weight=0)", "KL(on=['aux_2'])"]}, 4 * (3 * 103 + 1050)),
        ({"terms": ["DKD(on='heads')"]}, 4 * (3 * 123 + 1350)),
        # Nothing is learned from the teacher, which does not run.
        ({"terms": ["CrossEntropy()", "KL(weight=0)"]}, 1200),
    ],
)
def test_what_a_distillation_took(options, expected):
    assert spent("distill", options, {"model": "teacher"}) == expected


def test_what_a_cached_distillation_took():
    origin = {"model": "teacher", "cache": {"variants": 2}}
    assert spent("distill", origin=origin) == (4 * 3 * 123, 2 * 5 * 4 * 1550)
