"""VGG-16, flatten, Dense 1024, Adam, batches of 32, 10 epochs: sktl and the classic Keras script.

``python keras_vgg16.py /path/to/python`` with a Python that has tensorflow-cpu.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import numpy as np
from common import forget, pictures, report, take_turns, weights_file

from sktl import PretrainedImageClassifier

EPOCHS, IMAGES, REPEATS = 10, 128, 2

KERAS = """
import sys, time
import numpy as np
import keras
X, y = np.load(sys.argv[1])["X"].astype("float32"), np.load(sys.argv[1])["y"]
base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
base.trainable = False
model = keras.Sequential([
    base,
    keras.layers.Flatten(),
    keras.layers.Dense(1024, activation="relu"),
    keras.layers.Dense(10, activation="softmax"),
])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
X = keras.applications.vgg16.preprocess_input(X)
model.fit(X[:32], y[:32], epochs=1, batch_size=32, verbose=0)  # compiles
start = time.perf_counter()
model.fit(X, y, epochs=1, batch_size=32, verbose=0)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Run all sides and print how they compare."""
    X, y = pictures(IMAGES)

    def sktl_fit() -> None:
        forget()
        PretrainedImageClassifier(
            "vgg16",
            weights=weights_file("vgg16"),
            pooling="flatten",
            head=(1024,),
            optimizer="adam",
            max_epochs=EPOCHS,
        ).fit(X, y)

    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, X=X, y=y)
        file.flush()

        def keras_fit() -> float:
            command = [sys.argv[1], "-c", KERAS, file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return float(done.stdout.split()[-1]) * EPOCHS

        sides = {"sktl": sktl_fit, f"Keras (1 of {EPOCHS} epochs timed)": keras_fit}
        report(take_turns(sides, REPEATS), "sktl")


if __name__ == "__main__":
    main()
