"""Who a network learns from: a network, several, or outputs that were written once."""

from keras_hsakd.names import DTYPES
from keras_hsakd.teachers.base import NetworkTeacher, Teacher
from keras_hsakd.teachers.cache import Deviation, TeacherCache
from keras_hsakd.teachers.cache_format import num_bytes
from keras_hsakd.teachers.cache_writing import check_new
from keras_hsakd.teachers.ensemble import Ensemble, get

__all__ = [
    "DTYPES",
    "Deviation",
    "Ensemble",
    "NetworkTeacher",
    "Teacher",
    "TeacherCache",
    "check_new",
    "get",
    "num_bytes",
]
