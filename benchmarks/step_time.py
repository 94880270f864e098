"""Time and memory of an HSAKD step, beside the authors' PyTorch step.

    git clone https://github.com/winycg/HSAKD /tmp/official
    python benchmarks/step_time.py --official /tmp/official --output step_time.json
    git worktree add /tmp/before main~3
    python benchmarks/step_time.py --against /tmp/before --pairs wrn_40_2:wrn_16_2

Needs PyTorch for `--official`, whose modules are imported from the checkout. Each
contestant has a process of its own, with the whole machine while it runs a block of
steps and the others wait; who comes first changes with the round. A ratio is the time
of another contestant over ours in the same round, so above 1 where we are faster; of
the ratios, the median and its 95 % interval (bootstrap) are told, of the time on the
clock and of that of the processor. One batch, in memory, is trained on again and again,
in float32. Multiply-adds a second are beside those of a product of large matrices,
measured after each block. Memory is the highest of a process, above its highest after
the imports. `--profile` adds where the time of our step goes, by TensorFlow's profiler.
"""

import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

CLASSES, SIZE = 100, 32
# Of a pair, what the authors call the networks.
OFFICIAL = {
    "wrn_40_2": "wrn_40_2_aux",
    "wrn_16_2": "wrn_16_2_aux",
    "resnet56": "resnet56_aux",
    "resnet20": "resnet20_aux",
    "resnet32x4": "resnet32x4_aux",
    "resnet8x4": "resnet8x4_aux",
    "vgg13_bn": "vgg13_bn_aux",
    "mobilenet_v2": "mobilenetV2_aux",
    "shufflenet_v1": "ShuffleV1_aux",
    "shufflenet_v2": "ShuffleV2_aux",
}
PAIRS = [
    "wrn_40_2:wrn_16_2",
    "resnet56:resnet20",
    "vgg13_bn:mobilenet_v2",
    "resnet32x4:resnet8x4",
    "wrn_40_2:shufflenet_v1",
]
# The paper's, also below its learning rate for the small networks.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, TEMPERATURE = 0.01, 0.9, 5e-4, 3.0
HERE = pathlib.Path(__file__).resolve().parents[1]


def batch(size):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, SIZE, SIZE, 3)).astype("float32")
    return images, rng.integers(0, CLASSES, size)


# The contestants: each imports what it needs, and yields when it has, then a function
# of one step that returns its loss, then the multiply-adds of a step.


def ours(teacher, student, batch_size):
    import tensorflow as tf

    import keras_hsakd

    yield
    networks = [keras_hsakd.models.create(name, CLASSES) for name in (teacher, student)]
    distiller = keras_hsakd.Distiller(*networks, TEMPERATURE).compile(
        keras_hsakd.optimizers.SGD(
            LEARNING_RATE, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        ),
        steps_per_execution=1,
    )
    data = tf.data.Dataset.from_tensors(batch(batch_size)).cache().repeat()
    iterator = iter(data)
    distiller.make_train_function()  # as `fit` does
    yield lambda: float(distiller.train_function(iterator)["loss"])
    # A training needs the gradients by the weights and by what is fed to a layer, too.
    forward, trained = map(keras_hsakd.models.multiply_adds, networks)
    yield 4 * batch_size * (forward + 3 * trained)


def official(teacher, student, batch_size):
    import models
    import torch
    from torch.nn import functional

    yield
    teacher, student = (
        getattr(models, OFFICIAL[name])(num_classes=CLASSES)
        for name in (teacher, student)
    )
    teacher.eval()
    student.train()
    optimizer = torch.optim.SGD(
        student.parameters(),
        LEARNING_RATE,
        MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    images, labels = map(torch.tensor, batch(batch_size))
    images = images.permute(0, 3, 1, 2).contiguous()

    def divergence(outputs, targets):
        return TEMPERATURE**2 * functional.kl_div(
            functional.log_softmax(outputs / TEMPERATURE, 1),
            functional.softmax(targets / TEMPERATURE, 1),
            reduction="batchmean",
        )

    def step():
        turned = [torch.rot90(images, turns, (2, 3)) for turns in range(4)]
        views = torch.stack(turned, 1).flatten(0, 1)
        optimizer.zero_grad()
        logits, of_heads = student(views, grad=True)
        with torch.no_grad():
            targets, targets_of_heads = teacher(views)
        loss = functional.cross_entropy(logits[::4], labels)
        for outputs, wanted in zip(
            [logits, *of_heads], [targets, *targets_of_heads], strict=True
        ):
            loss = loss + divergence(outputs, wanted)
        loss.backward()
        optimizer.step()
        return loss.item()

    yield step
    yield None


def profile(teacher, student, batch_size, steps=5):
    """Returns parts of the time of our step, by parts of it and kinds of operations."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    _, step, *_ = ours(teacher, student, batch_size)
    for _ in range(3):
        step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(steps):
                step()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    parts, kinds = collections.Counter(), collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
            kind = kind.removeprefix("_Mkl").removeprefix("Native").lstrip("_")
            if not name.startswith("StatefulPartitionedCall/") or not kind.isalnum():
                continue
            scope = name.split("/")[1]
            kinds[kind] += event.duration_ps
            if scope.startswith(teacher):
                parts["teacher"] += event.duration_ps
            elif scope.startswith("distiller"):
                parts["student, forward"] += event.duration_ps
            elif scope.startswith(("gradient_tape", "AddN")):
                parts["student, backward"] += event.duration_ps
            elif scope.startswith("sgd"):
                parts["optimizer"] += event.duration_ps
            else:
                parts["views, losses, metrics"] += event.duration_ps
    return {
        of: {name: round(time / counts.total(), 3) for name, time in most}
        for of, counts in (("by_part", parts), ("by_kind", kinds))
        for most in [counts.most_common(12)]
    }


def matrix_product():
    """Returns a function that gives the multiply-adds a second of a matrix product."""
    framework = sys.modules.get("torch") or sys.modules["tensorflow"]
    size, repeats = 1024, 4
    matrices = np.random.default_rng(0).normal(size=(2, size, size)).astype("float32")
    a, b = map(getattr(framework, "tensor", None) or framework.constant, matrices)

    def rate():
        began = time.perf_counter()
        for _ in range(repeats):
            product = framework.matmul(a, b)
        product.numpy()
        return repeats * size**3 / (time.perf_counter() - began)

    return rate


def run_profile(*arguments):
    command = [sys.executable, __file__, "--contest", "profile", str(HERE)]
    output = subprocess.check_output([*command, *map(str, arguments)], text=True)
    return json.loads(output.splitlines()[-1])


def peak():
    """Returns the highest memory of this process so far, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def contest(contestant, *arguments):
    """Runs blocks of as many steps as each line says, and answers with what they took.

    A line without a number ends it.
    """
    made = contestant(*arguments)
    next(made)
    after_imports = peak()
    step = next(made)
    product = matrix_product()
    for line in sys.stdin:
        if not line.strip():
            break
        steps = int(line)
        began, began_processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        took = {
            "seconds": (time.perf_counter() - began) / steps,
            "processor_seconds": (time.process_time() - began_processor) / steps,
        }
        print(json.dumps({**took, "product": product()}), flush=True)
    answer = {"memory": peak() - after_imports, "multiply_adds": next(made)}
    print(json.dumps(answer), flush=True)


class Contestant:
    """A process that waits until it is told to run a block of steps."""

    def __init__(self, kind, path, teacher, student, batch_size):
        command = [sys.executable, __file__, "--contest", kind, str(path)]
        self._process = subprocess.Popen(
            [*command, teacher, student, str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"A contestant ended: {self._process.args}")
        return json.loads(answer)

    def end(self):
        answer = self.ask("")
        self._process.wait()
        return answer


def race(contestants, rounds, steps, pause):
    """Returns the blocks of each contestant, one a round."""
    for contestant in contestants.values():
        contestant.ask(2)  # traces, compiles, warms up
    blocks = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            time.sleep(pause)  # until the threads of the one before have fallen asleep
            blocks[name].append(contestants[name].ask(steps))
    return blocks


def interval(ratios):
    """Returns the median of ratios with a 95 % interval."""
    ratios = np.array(ratios)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return {
        "median": round(float(np.median(ratios)), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
    }


def measure(pair, others, options):
    teacher, student = pair.split(":")
    contestants = {
        name: Contestant(kind, path, teacher, student, options.batch_size)
        for name, (kind, path) in {"ours": ("ours", HERE), **others}.items()
    }
    blocks = race(contestants, options.rounds, options.steps, options.pause)
    ends = {name: contestant.end() for name, contestant in contestants.items()}
    work = ends["ours"]["multiply_adds"]
    rows = {}
    for name, of_one in blocks.items():
        parts = [work / block["seconds"] / block["product"] for block in of_one]
        row = {
            "seconds_a_step": statistics.median(b["seconds"] for b in of_one),
            "processor_seconds_a_step": statistics.median(
                b["processor_seconds"] for b in of_one
            ),
            "part_of_matrix_product": statistics.median(parts),
            "megabytes": ends[name]["memory"] / 1e6,
        }
        rows[name] = {key: float(f"{value:.4g}") for key, value in row.items()}
    for name in others:
        for of, key in (("clock", "seconds"), ("processor", "processor_seconds")):
            ratios = [
                other[key] / own[key]
                for other, own in zip(blocks[name], blocks["ours"], strict=True)
            ]
            rows[name][f"ratio_by_{of}"] = interval(ratios)
        memory = rows["ours"]["megabytes"] / rows[name]["megabytes"]
        rows[name]["memory_of_ours"] = round(memory, 3)
    return {"multiply_adds_a_step": work, **rows}


def main():
    if sys.argv[1:2] == ["--contest"]:
        kind, path, teacher, student, batch_size = sys.argv[2:]
        sys.path.insert(0, path)
        arguments = (teacher, student, int(batch_size))
        if kind == "profile":
            return print(json.dumps(profile(*arguments)))
        return contest({"ours": ours, "official": official}[kind], *arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", help="checkout of the authors' code")
    parser.add_argument("--against", help="another checkout of this project")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="steps in a block")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before one")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--output", help="JSON file to write (default: none)")
    options = parser.parse_args()
    others = {
        name: (kind, path)
        for name, kind, path in (
            ("official", "official", options.official),
            ("against", "ours", options.against),
        )
        if path
    }
    results = {}
    for pair in options.pairs:
        results[pair] = measure(pair, others, options)
        if options.profile:
            results[pair]["profile"] = run_profile(*pair.split(":"), options.batch_size)
        print(f"{pair}: {json.dumps(results[pair], indent=2)}", flush=True)
    if options.output:
        # Imported last: contestants may be of other checkouts.
        sys.path.insert(0, str(HERE))
        from keras_hsakd.files import write_json
        from keras_hsakd.machine import machine, versions

        packages = versions("keras", "tensorflow", "torch", "numpy")
        told = {"batch_size", "rounds", "steps"}
        settings = {key: value for key, value in vars(options).items() if key in told}
        write_json(
            options.output,
            {**settings, "pairs": results, "machine": machine(), "versions": packages},
        )


if __name__ == "__main__":
    main()
