"""Exact resume: trainings that go on as if they had never stopped."""

from keras_hsakd.resume.callback import OutOfTime, Preempted, Resume
from keras_hsakd.resume.snapshot import Snapshot, list_snapshots

__all__ = ["OutOfTime", "Preempted", "Resume", "Snapshot", "list_snapshots"]
