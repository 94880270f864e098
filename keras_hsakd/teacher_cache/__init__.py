"""A teacher's outputs on fixed augmentations of each image: written once, replayed."""

from keras_hsakd.names import DTYPES
from keras_hsakd.teacher_cache.cache import Deviation, TeacherCache
from keras_hsakd.teacher_cache.format import num_bytes
from keras_hsakd.teacher_cache.writing import check_new

__all__ = ["DTYPES", "Deviation", "TeacherCache", "check_new", "num_bytes"]
