"""The method in NumPy, written from the paper; everything is float64."""

import numpy as np


def softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rotated_views(images):
    return np.stack([np.rot90(image, r) for image in images for r in range(4)])


def joint_labels(labels):
    return np.array(
        [-1 if label < 0 else 4 * label + r for label in labels for r in range(4)]
    )


def cross_entropy(labels, logits):
    """Returns the cross-entropy by row, for integer labels."""
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def kl_divergence(teacher_logits, student_logits, temperature):
    """Returns tau^2 KL(teacher || student) by row."""
    p = softmax(teacher_logits, temperature)
    q = softmax(student_logits, temperature)
    return temperature**2 * np.sum(p * np.log(p / q), axis=-1)


def decoupled_divergence(teacher, student, labels, temperature, alpha, beta):
    """Returns DKD by row: equation 7 of its paper, row by row, times tau^2."""
    values = []
    for logits, own_logits, label in zip(teacher, student, labels, strict=True):
        label = np.argmax(logits) if label < 0 else label
        p, q = softmax(logits, temperature), softmax(own_logits, temperature)
        others = np.arange(len(logits)) != label
        b = np.array([[x[label], 1 - x[label]] for x in (p, q)])
        about_right = np.sum(b[0] * np.log(b[0] / b[1]))
        p, q = p[others] / p[others].sum(), q[others] / q[others].sum()
        values.append(alpha * about_right + beta * np.sum(p * np.log(p / q)))
    return temperature**2 * np.array(values)


def standardized_divergence(teacher, student, temperature):
    """Returns the divergence of the z-scores of rows of logits."""
    scores = [
        (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)
        for x in np.asarray([teacher, student], np.float64)
    ]
    return kl_divergence(*scores, temperature)


def student_losses(teacher, student, labels, temperature, weights=None):
    """Returns the terms of the student's loss, as they are reported.

    `teacher` and `student` are the networks' outputs for the rotated views, or, where
    these are class logits alone, for the images. Label -1 is an image without one.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    num_views = len(student["logits"]) // len(labels)
    row_weights = np.repeat(weights, num_views)
    labeled = labels >= 0
    on_images = cross_entropy(labels[labeled], student["logits"][::num_views][labeled])
    mean = np.mean(weights[labeled] * on_images) if labeled.any() else 0.0
    losses = {"ce_loss": mean}
    for name in student:
        values = kl_divergence(teacher[name], student[name], temperature)
        term = "kl_main" if name == "logits" else f"kl_{name}"
        losses[term] = np.mean(row_weights * values)
    return losses


def student_loss(losses, labels):
    """Returns the loss of these terms: the cross-entropy counts by its images."""
    return sum(losses.values()) - losses["ce_loss"] * np.mean(labels < 0)


def teacher_losses(teacher, labels, weights=None):
    """Returns the terms of the teacher's loss, from its outputs for the views."""
    weights = np.ones(len(labels)) if weights is None else weights
    on_images = cross_entropy(
        labels, teacher["logits"][:: len(teacher["logits"]) // len(labels)]
    )
    losses = {"ce_loss": np.mean(weights * on_images)}
    for name in teacher:
        if name != "logits":
            values = cross_entropy(joint_labels(labels), teacher[name])
            losses[f"ce_{name}"] = np.mean(np.repeat(weights, 4) * values)
    return losses


def sgd(weights, gradients, learning_rates, momentum, nesterov, weight_decay):
    """Returns the weights after PyTorch's SGD has seen one gradient after another."""
    buffer = np.zeros_like(weights)
    for gradient, learning_rate in zip(gradients, learning_rates, strict=True):
        g = gradient + weight_decay * weights
        buffer = momentum * buffer + g
        weights = weights - learning_rate * (
            g + momentum * buffer if nesterov else buffer
        )
    return weights


def batch_normalization(x, gamma, beta, epsilon):
    """Returns normalised channels-last images, the mean and the unbiased variance."""
    axes = tuple(range(x.ndim - 1))
    mean, biased = x.mean(axes), x.var(axes)
    normalised = (x - mean) / np.sqrt(biased + epsilon) * gamma + beta
    return normalised, mean, x.var(axes, ddof=1)


# Features, from the papers and the CRD benchmark's code (RepDistiller).


def hint(teacher, student):
    """Returns the mean squared difference by row."""
    return ((teacher - student) ** 2).reshape(len(teacher), -1).mean(axis=1)


def pooled(maps, size):
    """Returns square maps of another size, position by position, as PyTorch pools."""
    old = maps.shape[1]
    found = np.zeros((len(maps), size, size, maps.shape[-1]))
    for i in range(size):
        for j in range(size):
            rows = slice(i * old // size, -(-(i + 1) * old // size))
            columns = slice(j * old // size, -(-(j + 1) * old // size))
            found[:, i, j] = maps[:, rows, columns].mean(axis=(1, 2))
    return found


def attention(teacher, student):
    """Returns the mean squared difference of two attention maps by row."""
    size = min(teacher.shape[1], student.shape[1])
    maps = []
    for x in (pooled(teacher, size), pooled(student, size)):
        q = (x**2).mean(axis=-1).reshape(len(x), -1)
        maps.append(q / np.linalg.norm(q, axis=1, keepdims=True))
    return ((maps[0] - maps[1]) ** 2).mean(axis=1)


def similarity(teacher, student):
    """Returns the squared differences of normalized rows of products, by row."""
    products = []
    for x in (teacher, student):
        x = x.reshape(len(x), -1)
        g = x @ x.T
        products.append(g / np.linalg.norm(g, axis=1, keepdims=True))
    return ((products[0] - products[1]) ** 2).sum(axis=1) / len(teacher)


def relational(teacher, student, distance=25, angle=50):
    """Returns the distances and angles' differences by row, one by one."""

    def huber(x):
        return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5

    size = len(teacher)
    distances, cosines = [], []
    for x in (teacher, student):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        distances.append(d / d[d > 0].mean())
        c = np.zeros((size,) * 3)
        for i in range(size):
            for j in range(size):
                for k in range(size):
                    if i not in (j, k):
                        a, b = x[j] - x[i], x[k] - x[i]
                        c[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        cosines.append(c)
    rows = []
    for i in range(size):
        d = [huber(distances[1][i, j] - distances[0][i, j]) for j in range(size)]
        c = [huber(x) for x in (cosines[1][i] - cosines[0][i]).ravel()]
        rows.append(distance * np.mean(d) + angle * np.mean(c))
    return np.array(rows)
