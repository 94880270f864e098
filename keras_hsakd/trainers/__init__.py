"""Trainers: one `keras.Model` for each way of training."""

from keras_hsakd.trainers.distiller import Distiller
from keras_hsakd.trainers.mutual import MutualDistiller
from keras_hsakd.trainers.teacher import TeacherTrainer

__all__ = ["Distiller", "MutualDistiller", "TeacherTrainer"]
