"""Pure functions on tensors: rotated views, joint labels, softened divergence.

Everything here is written in `keras.ops`, holds no state, and runs on every backend.
`M = NUM_ROTATIONS = 4` throughout; `B` is the batch, `N` the number of classes.
"""

import keras
from keras import ops

NUM_ROTATIONS = 4


def rotated_views(images: keras.KerasTensor) -> keras.KerasTensor:
    """Returns each image under 0, 90, 180 and 270 degrees, one after the other.

    Row `4 * b + r` of the result is image `b` after `r` counter-clockwise quarter
    turns, as `np.rot90` turns it. Keeping an image's views together keeps a batch
    that is split over devices split by images.

    Args:
        images: Tensor of shape `(B, S, S, C)`, any dtype.

    Returns:
        Tensor of shape `(4 * B, S, S, C)`, same dtype.

    Example:
    >>> images = np.arange(4.0).reshape(1, 2, 2, 1)
    >>> np.array(rotated_views(images))[1, :, :, 0].tolist()
    [[1.0, 3.0], [0.0, 2.0]]

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.1.
    """
    views = ops.stack(
        [ops.rot90(images, k=r, axes=(1, 2)) for r in range(NUM_ROTATIONS)], axis=1
    )
    return ops.reshape(views, (-1, *ops.shape(images)[1:]))


def unrotated(rows: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the rows of the images at 0 degrees out of those of all views.

    Args:
        rows: Tensor of shape `(4 * B, ...)`, ordered as by `rotated_views`.

    Returns:
        Tensor of shape `(B, ...)`.

    Example:
    >>> unrotated(np.arange(8)).tolist()
    [0, 4]
    """
    return rows[::NUM_ROTATIONS]


def joint_labels(labels: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the joint label of class and rotation for each rotated view.

    `joint = 4 * y + r` for class `y` under rotation `r`.

    Args:
        labels: Integer class labels of shape `(B,)`, or class probabilities (one-hot,
            smoothed or mixed labels) of shape `(B, N)`.

    Returns:
        int32 joint labels of shape `(4 * B,)`, or joint probabilities of shape
        `(4 * B, 4 * N)`, ordered as by `rotated_views`.

    Example:
    >>> np.array(joint_labels(np.array([2, 0]))).tolist()
    [8, 9, 10, 11, 0, 1, 2, 3]

    Reference: [Yang et al., 2021](https://arxiv.org/abs/2107.13715), section 3.1.
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 1:
        # A narrower type might not hold the joint labels.
        labels = ops.cast(labels, "int32")
        rotations = ops.arange(NUM_ROTATIONS, dtype="int32")
        return ops.reshape(NUM_ROTATIONS * labels[:, None] + rotations, (-1,))
    rotations = ops.eye(NUM_ROTATIONS, dtype=labels.dtype)
    joint = labels[:, None, :, None] * rotations[:, None, :]
    return ops.reshape(joint, (-1, labels.shape[1] * NUM_ROTATIONS))


def class_logits(joint_logits: keras.KerasTensor) -> keras.KerasTensor:
    """Returns class logits: the sums of the joint logits over the rotations.

    Args:
        joint_logits: Tensor of shape `(rows, 4 * N)`.

    Returns:
        Tensor of shape `(rows, N)`.

    Example:
    >>> np.array(class_logits(np.arange(8.0).reshape(1, 8))).tolist()
    [[6.0, 22.0]]

    Reference: the evaluation of the
    [authors' implementation](https://github.com/winycg/HSAKD).
    """
    num_classes = joint_logits.shape[1] // NUM_ROTATIONS
    joint_logits = ops.reshape(joint_logits, (-1, num_classes, NUM_ROTATIONS))
    return ops.sum(joint_logits, axis=2)


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
