"""A page to try a network on images of your own."""

from keras_hsakd.tryout.page import serve

__all__ = ["serve"]
