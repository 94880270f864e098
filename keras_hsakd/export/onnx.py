"""ONNX, for ONNX Runtime and whatever else reads it."""

import json
import logging

from keras_hsakd.export.formats import Format, Predict, in_graph, optional_module
from keras_hsakd.export.serving import Served

# The names of the classes, as a JSON list, in the metadata of a file.
CLASS_NAMES = "class_names"


def write(served: Served, path: str) -> None:
    """Writes an ONNX file for batches of any size; see `Format`."""
    onnx = optional_module("onnx")
    convert = optional_module("tf2onnx.convert")
    function = in_graph(served.model).serve.get_concrete_function()
    names = {function.inputs[0].name: "images"}
    for name, output in function.structured_outputs.items():
        names[output.name] = name
    inputs, *outputs = names
    # Frozen first: what a layer holds in a tensor, as an adapted Normalization does,
    # would become an input of the file.
    graph = optional_module("tf2onnx.tf_loader").from_function(
        function, [inputs], outputs
    )
    # It warns with tracebacks of simplifications that it leaves out.
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model, _ = convert.from_graph_def(
            graph,
            name=served.model.name,
            input_names=[inputs],
            output_names=outputs,
            tensors_to_rename=names,
        )
    finally:
        logger.setLevel(level)
    if served.class_names is not None:
        class_names = json.dumps(list(map(str, served.class_names)))
        onnx.helper.set_model_props(model, {CLASS_NAMES: class_names})
    onnx.save(model, path)


def load(path: str) -> Predict:
    """Loads a file in ONNX Runtime; see `Format`."""
    runtime = optional_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(
        zip(names, session.run(names, {"images": images}), strict=True)
    )


ONNX = Format(write, load, suffix=".onnx", runtime="onnxruntime")
