"""How trainers are saved, and the networks that they train exported."""

import keras
from keras import ops

from keras_hsakd.heads import strip_heads


class Saving:
    """Mixin of a trainer: its configuration, and what of it is in files."""

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self._samples:  # Keras does not save what a `SeedGenerator` has drawn
            store["sampled_views"] = ops.convert_to_numpy(self._seeds.state)

    def load_own_variables(self, store):
        saved = {name: store[name] for name in sorted(store.keys())}
        drawn = saved.pop("sampled_views", None)
        if self._samples and drawn is not None:
            self._seeds.state.assign(drawn)
        super().load_own_variables(saved)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "dtype": serialize(self.dtype_policy),
            "views": [serialize(view) for view in self.views]
            if isinstance(self.views, tuple)
            else self.views,
            "sampled_views": self.sampled_views,
            "terms": [serialize(term) for term in self.terms],
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(value):
            if isinstance(value, list):
                return [deserialize(item) for item in value]
            if isinstance(value, dict):
                return keras.saving.deserialize_keras_object(value, custom_objects)
            return value

        return cls(**{key: deserialize(value) for key, value in config.items()})

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, "head_metrics": self.head_metrics}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def export(self, filepath, *args, **kwargs):
        """Exports the trained network without heads, as `keras.Model.export`."""
        plain = strip_heads(self.network)
        plain(plain.inputs[0])  # Keras exports no ONNX of a model that was never called
        return plain.export(filepath, *args, **kwargs)
