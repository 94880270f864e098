"""Pascal VOC for detectors of keras-cv: images and boxes, and AP50 by pycocotools.

Boxes are (left, top, right, bottom) in pixels, "xyxy", of images that were resized to
squares. The data sets come through TensorFlow Datasets, or are already there.
"""

import keras_cv
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NUM_CLASSES = 20


def batches(names, split, size, batch_size, data_dir=None):
    """Returns shuffled, mirrored batches of one data set after the other."""
    flip = keras_cv.layers.RandomFlip("horizontal", bounding_box_format="xyxy")

    def example(row):
        boxes = tf.gather(row["objects"]["bbox"], [1, 0, 3, 2], axis=1) * size
        classes = tf.cast(row["objects"]["label"], "float32")
        boxes = {"boxes": boxes, "classes": classes}
        return {"images": resized(row, size), "bounding_boxes": boxes}

    def padded(batch):
        boxes = keras_cv.bounding_box.to_dense(batch["bounding_boxes"], max_boxes=100)
        return {**batch, "bounding_boxes": boxes}

    first, *others = (tfds.load(n, split=split, data_dir=data_dir) for n in names)
    for rows in others:
        first = first.concatenate(rows)
    images = first.shuffle(1000).map(example).ragged_batch(batch_size)
    return images.map(flip).map(padded).prefetch(2)


def resized(row, size):
    """Returns the image of a row as a square."""
    return tf.image.resize(row["image"], (size, size))


def average_precision(detector, name, split, size, batch_size, data_dir=None):
    """Returns AP50 as COCO defines it; objects that VOC calls difficult do not count.

    It is the mean over classes, by 101 points of recall, where VOC 2007 takes 11.
    """
    rows = tfds.load(name, split=split, data_dir=data_dir)
    images = rows.map(lambda row: resized(row, size)).batch(batch_size)
    found = detector.predict(images, verbose=0)
    objects, results = [], []
    for image, row in enumerate(rows.as_numpy_iterator()):
        boxes = row["objects"]["bbox"][:, [1, 0, 3, 2]] * size
        boxes[:, 2:] -= boxes[:, :2]  # pycocotools has left, top, width, height
        labels, difficult = row["objects"]["label"], row["objects"]["is_difficult"]
        for box, label, left_out in zip(boxes, labels, difficult, strict=True):
            objects.append({"id": len(objects) + 1, "image_id": image, "bbox": box})
            objects[-1] |= {"category_id": int(label), "iscrowd": int(left_out)}
            objects[-1]["area"] = box[2] * box[3]
        for k in range(found["num_detections"][image]):
            box = found["boxes"][image, k]
            score, label = found["confidence"][image, k], found["classes"][image, k]
            results.append([image, *box[:2], *(box[2:] - box[:2]), score, label])
    if not results:
        return 0.0
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(rows))],
        "categories": [{"id": label} for label in range(NUM_CLASSES)],
        "annotations": objects,
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(np.array(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1])
