"""Pure functions on tensors: views of images, joint labels, losses, accuracies.

Everything here is written in `keras.ops`, holds no state, and runs on every backend.
`B` is the batch, `N` the number of classes, `M` that of views of an image: 4 rotations
where nothing else is said.
"""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

NUM_ROTATIONS = 4


def quarter_turned(images: keras.KerasTensor, turns: int) -> keras.KerasTensor:
    """Returns images after counter-clockwise quarter turns.

    Args:
        images: Tensor of shape `(B, H, W, C)`, any dtype.
        turns: Number of quarter turns.

    Returns:
        Tensor of shape `(B, H, W, C)`, or `(B, W, H, C)` after an odd number.

    Example:
    >>> images = np.arange(2.0).reshape(1, 1, 2, 1)
    >>> np.array(quarter_turned(images, 2)).ravel().tolist()
    [1.0, 0.0]
    """
    # Not `ops.rot90`: Keras 3.15 on TensorFlow scrambles images that are not square.
    turns %= 4
    if turns == 0:
        return images
    if turns == 1:
        return ops.flip(ops.swapaxes(images, 1, 2), axis=1)
    if turns == 2:
        return ops.flip(images, axis=(1, 2))
    return ops.flip(ops.swapaxes(images, 1, 2), axis=2)


def quarter_turned_within(images: keras.KerasTensor, turns: int) -> keras.KerasTensor:
    """Returns images after quarter turns that keep the frame of the image.

    An image that is not square, turned on its side, is shrunk until it fits into its
    old height and width, and padded there with zeros.

    Args:
        images: Tensor of shape `(B, H, W, C)`, any dtype; shrunk integers are rounded.
        turns: Number of counter-clockwise quarter turns.

    Returns:
        Tensor of shape `(B, H, W, C)` and of the same dtype.

    Raises:
        ValueError: If `H` or `W` is unknown.

    Example:
    >>> tuple(quarter_turned_within(np.ones((1, 8, 12, 3), "float32"), 1).shape)
    (1, 8, 12, 3)
    """
    if None in images.shape[1:3]:
        raise ValueError(
            "Expected images of known height and width, for the view that turns them "
            f"within their frame. Received: shape {tuple(images.shape)}"
        )
    turned = quarter_turned(images, turns)
    if turned.shape[1:3] == images.shape[1:3]:
        return turned
    dtype = keras.backend.standardize_dtype(turned.dtype)
    is_floating = keras.backend.is_float_dtype(dtype)
    shrunk = ops.image.resize(
        turned if is_floating else ops.cast(turned, "float32"),
        images.shape[1:3],
        pad_to_aspect_ratio=True,
        antialias=True,
    )
    return shrunk if is_floating else ops.cast(ops.round(shrunk), dtype)


def permuted_channels(
    images: keras.KerasTensor, order: Sequence[int]
) -> keras.KerasTensor:
    """Returns images with their channels in another order.

    Args:
        images: Tensor of shape `(B, H, W, C)`, any dtype.
        order: For each channel of the result, the number of the channel it was.

    Returns:
        Tensor of shape `(B, H, W, C)`.

    Example:
    >>> images = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    >>> np.array(permuted_channels(images, (2, 0, 1))).ravel().tolist()
    [3.0, 1.0, 2.0]
    """
    return ops.stack([images[..., channel] for channel in order], axis=-1)


def shifted(images: keras.KerasTensor, shifts: keras.KerasTensor) -> keras.KerasTensor:
    """Returns each image shifted, with zeros where it was not, and some mirrored.

    It is a crop at a random place of images that were padded with zeros, where the
    places are drawn before.

    Args:
        images: Tensor of shape `(B, H, W, C)`, any dtype.
        shifts: Integers of shape `(B, 3)`: the rows that an image goes up, the columns
            that it goes left, and 1 for one that is mirrored after that, else 0.

    Returns:
        Tensor of the shape and dtype of `images`.

    Example:
    >>> image = np.arange(1, 5).reshape(1, 1, 4, 1)
    >>> np.array(shifted(image, np.array([[0, 1, 0]]))).ravel().tolist()
    [2, 3, 4, 0]
    >>> np.array(shifted(image, np.array([[0, 1, 1]]))).ravel().tolist()
    [0, 4, 3, 2]
    """
    _, height, width, _ = ops.shape(images)
    up, left, mirrored = ops.split(ops.cast(shifts, "int32"), 3, axis=1)
    columns = ops.arange(width, dtype="int32")[None]
    columns = ops.where(mirrored == 1, width - 1 - columns, columns) + left
    rows = ops.arange(height, dtype="int32")[None] + up

    def inside(places, edge):
        return ops.logical_and(places >= 0, places < edge)

    known = ops.logical_and(
        inside(rows, height)[:, :, None], inside(columns, width)[:, None]
    )
    places = ops.clip(rows, 0, height - 1)[:, :, None] * width
    places = places + ops.clip(columns, 0, width - 1)[:, None]
    pixels = ops.reshape(images, (-1, height * width, images.shape[-1]))
    places = ops.reshape(places, (-1, height * width, 1))
    moved = ops.reshape(ops.take_along_axis(pixels, places, axis=1), ops.shape(images))
    return ops.where(known[..., None], moved, ops.zeros_like(moved))


def transformed_views(
    images: keras.KerasTensor,
    views: Sequence[Callable[[keras.KerasTensor], keras.KerasTensor]],
) -> keras.KerasTensor:
    """Returns each image under each of `M` views, one after the other.

    Args:
        images: Tensor of shape `(B, H, W, C)`, any dtype.
        views: `M` functions from a batch of images to one of the same shape.

    Returns:
        Tensor of shape `(M * B, H, W, C)`; row `M * b + r` is image `b` under view `r`.

    Example:
    >>> views = transformed_views(np.ones((2, 1, 1, 1)), [lambda x: x, lambda x: -x])
    >>> np.array(views).ravel().tolist()
    [1.0, -1.0, 1.0, -1.0]
    """
    rows = ops.stack([view(images) for view in views], axis=1)
    return ops.reshape(rows, (-1, *ops.shape(images)[1:]))


def sampled_views(numbers: keras.KerasTensor, num_sampled: int) -> keras.KerasTensor:
    """Returns which views of each image are seen: the image itself, and some others.

    Each choice of `m - 1` of the other `M - 1` views is as likely as another.

    Args:
        numbers: Uniform random numbers of shape `(B, M - 1)`.
        num_sampled: Number `m` of views of each image, from 2 to `M`.

    Returns:
        int32 table of shape `(B, m)` of numbers of views, 0 first in each row.

    Example:
    >>> np.array(sampled_views(np.array([[0.9, 0.2, 0.5]]), 3)).tolist()
    [[0, 2, 3]]
    """
    order = ops.cast(ops.argsort(numbers, axis=1), "int32")
    others = 1 + order[:, : num_sampled - 1]
    return ops.concatenate([ops.zeros_like(others[:, :1]), others], axis=1)


def sampled_view_weights(num_views: int, num_sampled: int) -> np.ndarray:
    """Returns what the rows of sampled views weigh, so that none is favoured.

    The `m - 1` views that were drawn stand for all `M - 1` others: each weighs
    `(M - 1) / (m - 1)` times as much as the image itself. The weights have the mean 1,
    so that a weighted mean of rows has the expectation of the mean of all `M` views.

    Args:
        num_views: Number of views `M`.
        num_sampled: Number `m` of them that are seen, from 2 to `M`.

    Returns:
        Array of shape `(m,)`, of the image itself first.

    Example:
    >>> sampled_view_weights(4, 2).tolist()
    [0.5, 1.5]
    """
    others = (num_views - 1) / (num_sampled - 1)
    weights = np.array([1.0] + [others] * (num_sampled - 1))
    return weights * num_sampled / num_views


def seen_rows(
    rows: keras.KerasTensor,
    seen: keras.KerasTensor | None,
    num_views: int = NUM_ROTATIONS,
) -> keras.KerasTensor:
    """Returns those rows of all views that belong to views that are seen.

    Args:
        rows: Tensor of shape `(M * B, ...)`, ordered as by `transformed_views`.
        seen: Table of shape `(B, m)`, see `sampled_views`; `None` for all views.
        num_views: Number of views `M`. Defaults to 4.

    Returns:
        Tensor of shape `(m * B, ...)`; row `m * b + i` is image `b` under its view
        `seen[b, i]`.

    Example:
    >>> np.array(seen_rows(np.arange(8), np.array([[0, 3], [0, 1]]))).tolist()
    [0, 3, 4, 5]
    """
    if seen is None:
        return rows
    first = num_views * ops.arange(ops.shape(seen)[0], dtype="int32")
    return ops.take(rows, ops.reshape(first[:, None] + seen, (-1,)), axis=0)


def untransformed(
    rows: keras.KerasTensor, num_views: int = NUM_ROTATIONS
) -> keras.KerasTensor:
    """Returns the rows of the images themselves, the first view of each.

    Args:
        rows: Tensor of shape `(M * B, ...)`, ordered as by `transformed_views`.
        num_views: Number of views `M`. Defaults to 4.

    Returns:
        Tensor of shape `(B, ...)`.

    Example:
    >>> untransformed(np.arange(8)).tolist()
    [0, 4]
    """
    return rows[::num_views]


def standardized_labels(labels: keras.KerasTensor) -> keras.KerasTensor:
    """Returns labels as integers of shape `(B,)` or probabilities of shape `(B, N)`.

    Args:
        labels: Tensor of shape `(B,)`, `(B, 1)` or `(B, N)`.

    Example:
    >>> np.array(standardized_labels(np.array([[2.0], [0.0]]))).tolist()
    [2, 0]
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[1] == 1:
        labels = ops.squeeze(labels, axis=1)
    if len(labels.shape) == 1:
        return ops.cast(labels, "int32")
    # One-hot labels may be integers or booleans.
    return ops.cast(labels, keras.backend.result_type(labels.dtype, "float32"))


# Probabilities rounded to bfloat16, or to two decimals, are still some; labels of
# several classes at once (multi-hot) are off by a whole one.
SUM_TOLERANCE = 2e-2


def valid_labels(
    labels: keras.KerasTensor, num_classes: int, lowest: int = 0
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Returns labels with 0 for each invalid one, and whether all are valid.

    A label is a whole number from `lowest` to `num_classes - 1`, or a row of numbers
    that are not negative and sum to one.

    Args:
        labels: Tensor of shape `(B,)`, `(B, 1)` or `(B, N)`.
        num_classes: Number of classes `N`.
        lowest: Lowest label; -1 where an image may have none. Defaults to 0.

    Returns:
        A tensor like `labels`, and a scalar boolean tensor.

    Example:
    >>> labels, valid = valid_labels(np.array([0, 3, -1]), num_classes=3)
    >>> np.array(labels).tolist(), bool(valid)
    ([0, 0, 0], False)
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[1] != 1:
        rows = ops.cast(labels, "float32")
        sums = ops.sum(rows, axis=1, keepdims=True)
        valid = ops.all(rows >= 0, axis=1, keepdims=True)
        valid = ops.logical_and(valid, ops.abs(sums - 1) <= SUM_TOLERANCE)
    else:
        integers = ops.cast(labels, "int32")
        valid = ops.equal(ops.cast(integers, labels.dtype), labels)
        valid = ops.logical_and(valid, integers >= lowest)
        valid = ops.logical_and(valid, integers < num_classes)
    return ops.where(valid, labels, ops.zeros_like(labels)), ops.all(valid)


def class_of_labels(labels: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the class of each label, the likeliest of class probabilities.

    Args:
        labels: Tensor of shape `(B,)` or `(B, 1)`, whole numbers, or `(B, N)`, class
            probabilities.

    Returns:
        int32 tensor of shape `(B,)`.

    Example:
    >>> np.array(class_of_labels(np.array([[3], [1]]))).tolist()
    [3, 1]
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 2 and labels.shape[1] != 1:
        labels = ops.argmax(ops.cast(labels, "float32"), axis=1)
    return ops.cast(ops.reshape(labels, (-1,)), "int32")


def joint_labels(
    labels: keras.KerasTensor, num_views: int = NUM_ROTATIONS
) -> keras.KerasTensor:
    """Returns the joint label of class and view for each view.

    `joint = M * y + r` for class `y` under view `r`; an image without a label, -1, has
    no joint label either: -1 under all views.

    Args:
        labels: Integer class labels of shape `(B,)`, or class probabilities (one-hot,
            smoothed or mixed labels) of shape `(B, N)`.
        num_views: Number of views `M`. Defaults to 4, the rotations.

    Returns:
        int32 joint labels of shape `(M * B,)`, or joint probabilities of shape
        `(M * B, M * N)`, ordered as by `transformed_views`.

    Example:
    >>> np.array(joint_labels(np.array([2, 0]))).tolist()
    [8, 9, 10, 11, 0, 1, 2, 3]

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.1.
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 1:
        # A narrower type might not hold the joint labels.
        labels = ops.cast(labels, "int32")[:, None]
        views = ops.arange(num_views, dtype="int32")
        joint = ops.where(labels < 0, -1, num_views * labels + views)
        return ops.reshape(joint, (-1,))
    views = ops.eye(num_views, dtype=labels.dtype)
    joint = labels[:, None, :, None] * views[:, None, :]
    return ops.reshape(joint, (-1, labels.shape[1] * num_views))


def class_logits(
    joint_logits: keras.KerasTensor, num_views: int = NUM_ROTATIONS
) -> keras.KerasTensor:
    """Returns class logits: the sums of the joint logits over the views.

    Args:
        joint_logits: Tensor of shape `(rows, M * N)`.
        num_views: Number of views `M`. Defaults to 4.

    Returns:
        Tensor of shape `(rows, N)`.

    Example:
    >>> np.array(class_logits(np.arange(8.0).reshape(1, 8))).tolist()
    [[6.0, 22.0]]

    Reference: the evaluation of the
    [authors' implementation](https://github.com/winycg/HSAKD).
    """
    num_classes = joint_logits.shape[1] // num_views
    joint_logits = ops.reshape(joint_logits, (-1, num_classes, num_views))
    return ops.sum(joint_logits, axis=2)


def head_accuracies(
    joint_labels: keras.KerasTensor,
    joint_logits: keras.KerasTensor,
    num_views: int = NUM_ROTATIONS,
) -> dict[str, keras.KerasTensor]:
    """Returns by row whether a head predicts the joint label, and the class.

    The joint label is predicted by the largest joint logit, the class by the largest
    sum of joint logits over the views, see `class_logits`.

    Args:
        joint_labels: Integers of shape `(rows,)` or probabilities of shape
            `(rows, M * N)`, whose most probable joint label counts.
        joint_logits: Tensor of shape `(rows, M * N)`.
        num_views: Number of views `M`. Defaults to 4.

    Returns:
        Dict `{"joint": ..., "class": ...}` of boolean tensors of shape `(rows,)`.

    Example:
    >>> logits = np.array([[0.0, 3.0, 2.0, 2.0]])  # 2 classes, 2 views
    >>> accuracies = head_accuracies(np.array([1]), logits, num_views=2)
    >>> {name: bool(values[0]) for name, values in accuracies.items()}
    {'joint': True, 'class': False}

    Reference: the evaluation of the
    [authors' implementation](https://github.com/winycg/HSAKD).
    """
    if len(joint_labels.shape) == 2:
        joint_labels = ops.argmax(joint_labels, axis=-1)
    joint_labels = ops.cast(joint_labels, "int32")

    def predicted(logits):
        return ops.cast(ops.argmax(logits, axis=-1), "int32")

    return {
        "joint": ops.equal(predicted(joint_logits), joint_labels),
        "class": ops.equal(
            predicted(class_logits(joint_logits, num_views)), joint_labels // num_views
        ),
    }


def cross_entropy(
    labels: keras.KerasTensor, logits: keras.KerasTensor
) -> keras.KerasTensor:
    """Returns the cross-entropy of labels and predictions by row.

    Args:
        labels: Integers of shape `(rows,)` or probabilities of shape `(rows, K)`.
        logits: Tensor of shape `(rows, K)`.

    Returns:
        Tensor of shape `(rows,)`, in the dtype of the logits.

    Example:
    >>> np.round(cross_entropy(np.array([1]), np.zeros((1, 2), "float32")), 3)
    array([0.693], dtype=float32)
    """
    if len(labels.shape) == 1:
        return keras.losses.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )
    return keras.losses.categorical_crossentropy(
        ops.cast(labels, logits.dtype), logits, from_logits=True
    )


def smoothed_labels(
    labels: keras.KerasTensor, num_classes: int, smoothing: float
) -> keras.KerasTensor:
    """Returns probabilities of classes, a part of which is spread over all of them.

    Args:
        labels: Integers of shape `(rows,)` or probabilities of shape `(rows, K)`.
        num_classes: Number of classes `K`.
        smoothing: The part, from 0 to below 1.

    Returns:
        Tensor of shape `(rows, K)`.

    Example:
    >>> np.round(smoothed_labels(np.array([1]), 4, 0.2), 2)
    array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)

    Reference: [Szegedy et al., 2016](https://arxiv.org/abs/1512.00567), section 7.
    """
    if len(labels.shape) == 1:
        labels = ops.one_hot(labels, num_classes)
    return labels * (1 - smoothing) + smoothing / num_classes


def temperature_kl_divergence(
    teacher_logits: keras.KerasTensor,
    student_logits: keras.KerasTensor,
    temperature: float = 3.0,
) -> keras.KerasTensor:
    """Returns `tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))` by row.

    The factor `tau^2` keeps the size of the gradient independent of `tau`.

    Args:
        teacher_logits: Tensor of shape `(rows, K)`.
        student_logits: Tensor of shape `(rows, K)`.
        temperature: The temperature `tau > 0`. Defaults to 3.

    Returns:
        Tensor of shape `(rows,)`.

    Example:
    >>> float(temperature_kl_divergence(np.ones((1, 5)), np.zeros((1, 5)))[0])
    0.0

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531);
    [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.3.
    """
    teacher = ops.log_softmax(teacher_logits / temperature, axis=-1)
    student = ops.log_softmax(student_logits / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


def decoupled_divergence(
    teacher_logits: keras.KerasTensor,
    student_logits: keras.KerasTensor,
    labels: keras.KerasTensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> keras.KerasTensor:
    """Returns the divergences about the right class and among the others, by row.

    ```
    tau^2 * (alpha * KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta * KL(p' || q'))
    ```

    with `p` and `q` the softmax of the teacher's and the student's logits over `tau`,
    and `p'` and `q'` those over all classes but `y`. The temperature KL divergence is
    the same with `alpha = 1` and `beta = 1 - p_y`.

    Args:
        teacher_logits: Tensor of shape `(rows, K)`.
        student_logits: Tensor of shape `(rows, K)`.
        labels: Classes `y`, integers of shape `(rows,)`; or probabilities of shape
            `(rows, K)`, whose most probable class counts. Where a row has none,
            -1, the teacher's most probable class takes its place.
        temperature: The temperature `tau > 0`. Defaults to 4.
        alpha: Weight of the first divergence. Defaults to 1.
        beta: Weight of the second one. Defaults to 8.

    Returns:
        Tensor of shape `(rows,)`.

    Example:
    >>> teacher, student = np.array([[2.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    >>> divergence = decoupled_divergence(teacher, student, np.array([0]))
    >>> round(float(divergence[0]), 4)  # the others are predicted alike
    0.4695

    References: [Zhao et al., 2022](https://arxiv.org/abs/2203.08679), equation 7, and
    the [authors' implementation](https://github.com/megvii-research/mdistiller), whose
    `alpha` and `beta` the defaults are.
    """
    if len(labels.shape) == 2:
        labels = ops.argmax(labels, axis=-1)
    labels = ops.cast(labels, "int32")
    likely = ops.cast(ops.argmax(teacher_logits, axis=-1), "int32")
    labels = ops.where(labels < 0, likely, labels)
    is_right = ops.one_hot(labels, teacher_logits.shape[-1], dtype="bool")

    def log_probabilities(logits):
        """Returns those of the right class, of all others, and of each among them."""
        scaled = logits / temperature
        others = ops.where(is_right, -1e9, scaled)
        total = ops.logsumexp(scaled, axis=-1)
        right = ops.sum(ops.where(is_right, scaled, 0.0), axis=-1) - total
        wrong = ops.logsumexp(others, axis=-1) - total
        return right, wrong, ops.log_softmax(others, axis=-1)

    (right, wrong, among), (own_right, own_wrong, own_among) = map(
        log_probabilities, (teacher_logits, student_logits)
    )
    about_right = ops.exp(right) * (right - own_right)
    about_right += ops.exp(wrong) * (wrong - own_wrong)
    about_others = ops.sum(ops.exp(among) * (among - own_among), axis=-1)
    return temperature**2 * (alpha * about_right + beta * about_others)


def standardized_divergence(
    teacher_logits: keras.KerasTensor,
    student_logits: keras.KerasTensor,
    temperature: float = 2.0,
) -> keras.KerasTensor:
    """Returns the temperature KL divergence of logits that are standardized by row.

    The student need not match mean and scale of the teacher's logits: of each row of
    both the mean is subtracted, and the standard deviation (over `K - 1`) divided by.

    Args:
        teacher_logits: Tensor of shape `(rows, K)`.
        student_logits: Tensor of shape `(rows, K)`.
        temperature: The temperature `tau > 0`. Defaults to 2.

    Returns:
        Tensor of shape `(rows,)`.

    Example:
    >>> teacher = np.array([[2.0, 1.0, 0.0]])
    >>> float(standardized_divergence(teacher, 3 * teacher + 1)[0]) < 1e-9
    True

    References: [Sun et al., 2024](https://arxiv.org/abs/2403.01427), section 4, and the
    authors' implementation, `logit-standardization-KD`.
    """

    def standardized(logits):
        centered = logits - ops.mean(logits, axis=-1, keepdims=True)
        variance = ops.sum(centered**2, axis=-1, keepdims=True) / (logits.shape[-1] - 1)
        # Equal logits, of which the root has no gradient, stay zeros, with none.
        varies = variance > 0
        deviation = ops.sqrt(ops.where(varies, variance, ops.ones_like(variance)))
        return ops.where(varies, centered / (1e-7 + deviation), ops.zeros_like(logits))

    return temperature_kl_divergence(
        standardized(teacher_logits), standardized(student_logits), temperature
    )


def mean_squared_difference(
    teacher: keras.KerasTensor, student: keras.KerasTensor
) -> keras.KerasTensor:
    """Returns the mean squared difference of features, by row.

    Args:
        teacher: Tensor of shape `(rows, ...)`.
        student: Tensor of the same shape.

    Returns:
        Tensor of shape `(rows,)`.

    Example:
    >>> float(mean_squared_difference(np.zeros((1, 2)), np.array([[1.0, 3.0]]))[0])
    5.0
    """
    return ops.mean((teacher - student) ** 2, axis=tuple(range(1, len(student.shape))))


def adaptive_average_pool(
    maps: keras.KerasTensor, size: tuple[int, int]
) -> keras.KerasTensor:
    """Returns feature maps of another size, each position a mean, as PyTorch pools.

    Along an edge, position `i` of `n` is the mean of the old positions from
    `floor(i * N / n)` to below `ceil((i + 1) * N / n)`.

    Args:
        maps: Tensor of shape `(rows, H, W, channels)`, of known sizes.
        size: New height and width.

    Example:
    >>> maps = np.arange(3.0).reshape(1, 1, 3, 1)
    >>> np.array(adaptive_average_pool(maps, (1, 2))).ravel().tolist()
    [0.5, 1.5]

    Reference: `torch.nn.functional.adaptive_avg_pool2d`.
    """
    for axis, (old, new) in enumerate(zip(maps.shape[1:3], size, strict=True), 1):
        if old != new:
            positions, begins = np.arange(old), np.arange(new)[:, None]
            means = (positions >= begins * old // new) & (
                positions < -((begins + 1) * old // -new)
            )
            means = ops.cast(means / means.sum(axis=1, keepdims=True), maps.dtype)
            maps = ops.moveaxis(ops.tensordot(means, maps, [[1], [axis]]), 0, axis)
    return maps


def _unit(x, axis=-1):
    """Returns vectors divided by their L2 norm; those of zeros stay, with no gradient.

    Norms below 1e-12 count as that, as in PyTorch.
    """
    squares = ops.sum(x**2, axis=axis, keepdims=True)
    norms = ops.sqrt(ops.where(squares > 0, squares, ops.ones_like(squares)))
    return x / ops.maximum(norms, 1e-12)


def attention_difference(
    teacher: keras.KerasTensor, student: keras.KerasTensor
) -> keras.KerasTensor:
    """Returns the mean squared difference of two networks' attention maps, by row.

    An attention map is the mean over channels of squared features, divided by its L2
    norm over all positions. A larger map is pooled to the smaller one's size before.

    Args:
        teacher: Tensor of shape `(rows, H, W, channels)`, of known sizes.
        student: The same, of other sizes and channels.

    Returns:
        Tensor of shape `(rows,)`.

    Example:
    >>> teacher, student = np.ones((1, 1, 2, 1)), np.array([[[[1.0], [0.0]]]])
    >>> round(float(attention_difference(teacher, student)[0]), 4)
    0.2929

    References: [Zagoruyko and Komodakis, 2017](https://arxiv.org/abs/1612.03928),
    section 3.1, as the [CRD benchmark](https://github.com/HobbitLong/RepDistiller)
    computes it.
    """
    sizes = zip(teacher.shape[1:3], student.shape[1:3], strict=True)
    size = tuple(map(min, sizes))
    first, second = (
        _unit(ops.reshape(ops.mean(x**2, axis=-1), (-1, size[0] * size[1])))
        for x in (adaptive_average_pool(maps, size) for maps in (teacher, student))
    )
    return mean_squared_difference(first, second)


def _pairs(rows, counts):
    """Returns 1 for each pair of rows that count, 0 for others, and how many count."""
    if counts is None:
        counts = ops.ones_like(rows[:, 0])
    counts = ops.cast(counts, rows.dtype)
    return counts[:, None] * counts[None], ops.maximum(ops.sum(counts), 1)


def _flat(rows):
    """Returns features of rows as vectors."""
    return ops.reshape(rows, (-1, math.prod(rows.shape[1:])))


def similarity_difference(
    teacher: keras.KerasTensor,
    student: keras.KerasTensor,
    counts: keras.KerasTensor | None = None,
) -> keras.KerasTensor:
    """Returns how much the similarities of images to others differ, by row.

    `sum_j (G_T(i, j) - G_S(i, j))^2 / B` of image `i`, with `G` the products of the
    features of two images, divided by the L2 norm of all products of image `i`.

    Args:
        teacher: Tensor of shape `(B, ...)`, of known sizes but for `B`.
        student: The same, of other sizes.
        counts: Tensor of shape `(B,)`, 0 for images that no other is compared with,
            else 1. Defaults to `None`, all 1.

    Returns:
        Tensor of shape `(B,)`.

    Example:
    >>> np.array(similarity_difference(np.eye(2), np.eye(2) * 3)).tolist()
    [0.0, 0.0]

    Reference: [Tung and Mori, 2019](https://arxiv.org/abs/1907.09682), equation 4.
    """
    first, second = map(_flat, (teacher, student))
    pairs, count = _pairs(second, counts)
    first, second = (
        _unit(ops.matmul(x, ops.transpose(x)) * pairs) for x in (first, second)
    )
    return ops.sum((first - second) ** 2, axis=1) / count


def relational_differences(
    teacher: keras.KerasTensor,
    student: keras.KerasTensor,
    counts: keras.KerasTensor | None = None,
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Returns how much distances to other images, and angles between them, differ.

    See `keras_hsakd.terms.Relational` for the formula; the mean of each over all rows
    is that of all pairs and triples.

    Args:
        teacher: Tensor of shape `(B, ...)`, of known sizes but for `B`.
        student: The same, of other sizes.
        counts: See `similarity_difference`. Defaults to `None`, all 1.

    Returns:
        Tensors of shape `(B,)`, of the distances and of the angles.

    Example:
    >>> points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> _, angles = relational_differences(points, points[:, ::-1])
    >>> np.array(angles).tolist()
    [0.0, 0.0, 0.0]

    Reference: [Park et al., 2019](https://arxiv.org/abs/1904.05068), equations 5 to 10.
    """
    pairs, count = _pairs(_flat(student), counts)
    relations = []
    for features in map(_flat, (teacher, student)):
        differences = features[None] - features[:, None]
        squares = ops.sum(differences**2, axis=-1)
        # The root has no gradient where two images are the same.
        differ = ops.cast(squares > 0, squares.dtype) * pairs
        distances = ops.sqrt(ops.where(differ > 0, squares, 1.0)) * differ
        mean = ops.sum(distances) / ops.maximum(ops.sum(differ), 1)
        directions = _unit(differences) * pairs[..., None]
        relations.append(
            (
                distances / ops.where(mean > 0, mean, 1.0),
                ops.matmul(directions, ops.transpose(directions, (0, 2, 1))),
            )
        )
    (distances, angles), (own_distances, own_angles) = relations
    return (
        ops.sum(_smooth_l1(own_distances - distances), axis=1) / count,
        ops.sum(_smooth_l1(own_angles - angles), axis=(1, 2)) / count**2,
    )


def _smooth_l1(x):
    """Returns `x^2 / 2` up to 1, and `|x| - 1/2` above."""
    size = ops.abs(x)
    return ops.where(size < 1, x**2 / 2, size - 0.5)
