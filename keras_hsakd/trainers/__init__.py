"""Trainers: one `keras.Model` for each way of training."""

from keras_hsakd.trainers.baseline import BaselineTrainer
from keras_hsakd.trainers.distiller import Distiller
from keras_hsakd.trainers.mutual import MutualDistiller
from keras_hsakd.trainers.teacher import TeacherTrainer

__all__ = ["BaselineTrainer", "Distiller", "MutualDistiller", "TeacherTrainer"]
