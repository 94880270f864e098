"""Settings of a training as an optimizer and a schedule of its learning rate."""

import keras

from keras_hsakd.optimizers import SGD, WarmUp, step_decay
from keras_hsakd.runs.settings import TrainingSettings


def optimizer(
    training: TrainingSettings, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a training.

    Args:
        training: The settings.
        steps_per_epoch: Batches in an epoch, however many of them make an update.

    Raises:
        ValueError: If the training ends before its first update.

    Example:
    >>> settings = TrainingSettings(model="resnet8", ema=0.81, gradient_accumulation=2)
    >>> optimizer(settings, steps_per_epoch=7).ema_momentum
    0.9
    """
    batches, most = training.gradient_accumulation, training.epochs * steps_per_epoch
    if batches > most:
        raise ValueError(
            f"Expected `gradient_accumulation` to be at most {most}, the batches of "
            f"the training. Received: gradient_accumulation={batches}"
        )
    arguments = {
        "weight_decay": training.weight_decay,
        "global_clipnorm": training.clip_norm,
        "gradient_accumulation_steps": batches if batches > 1 else None,
    }
    if training.ema is not None:
        # Keras averages after every batch, and not after every update.
        arguments |= {"use_ema": True, "ema_momentum": training.ema ** (1 / batches)}
    rate = schedule(training, steps_per_epoch)
    if training.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, **arguments)
    return SGD(rate, training.momentum, training.nesterov, **arguments)


def schedule(
    training: TrainingSettings, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate of a training.

    Keras asks for that of a batch, however many of them make an update.

    Args:
        training: The settings.
        steps_per_epoch: As of `optimizer`.

    Example:
    >>> settings = TrainingSettings(model="resnet8", schedule="cosine", epochs=2)
    >>> rate = schedule(settings, steps_per_epoch=50)
    >>> [round(float(rate(step)), 3) for step in (0, 50, 100)]
    [0.05, 0.025, 0.0]
    """
    rate = training.learning_rate
    warmup = round(training.warmup_epochs * steps_per_epoch)
    if training.schedule == "cosine":
        steps = training.epochs * steps_per_epoch - warmup
        if not warmup:
            return keras.optimizers.schedules.CosineDecay(rate, steps)
        return keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=rate, warmup_steps=warmup
        )
    decay = step_decay(rate, training.epochs, steps_per_epoch, training.milestones)
    return WarmUp(decay, warmup) if warmup else decay
