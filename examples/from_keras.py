"""
The classic Keras recipe
========================

A network without its classifier, its last map flattened, one hidden layer of 1,024 units, Adam.

The Keras script, for comparison (it is not run here)::

    base = keras.applications.VGG16(include_top=False, input_shape=(224, 224, 3))
    base.trainable = False
    model = keras.Sequential([
        base,
        keras.layers.Flatten(),
        keras.layers.Dense(1024, activation="relu"),
        keras.layers.Dense(n_classes, activation="softmax"),
    ])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(keras.applications.vgg16.preprocess_input(images), labels, epochs=10, batch_size=32)
    model.predict(keras.applications.vgg16.preprocess_input(new_images)).argmax(axis=1)

Keras runs the network over all images in each of the ten epochs; sktl runs it once. Preparing the
images belongs to the weights, so there is no ``preprocess_input`` to forget, and labels may be
strings.

``python examples/from_keras.py [path/to/pictures [backbone [weights]]]``: with ``vgg16`` as the
backbone, its weights (528 MB) are downloaded once; ``mobilenet_v2 mobilenet.pth`` takes another
network and a state dict. Without arguments, the pictures are pieces of thirteen photographs, and
the network is the one that comes with sktl.
"""

# %%

import sys

from contact_sheet import save_sheet
from pictures import folder_of_pictures
from sklearn.model_selection import train_test_split

from sktl import PretrainedImageClassifier, load_image_folder

backbone, weights = (*sys.argv[2:], *("efficientnet_lite0", "DEFAULT")[len(sys.argv[2:]) :])
pictures = load_image_folder(folder_of_pictures(sys.argv[1:]))
train, test, y_train, y_test = train_test_split(
    pictures.data,
    pictures.target_names[pictures.target],
    stratify=pictures.target,
    random_state=0,
)

# %%
# The same recipe, as parameters:

clf = PretrainedImageClassifier(
    backbone,
    weights=weights,
    pooling="flatten",
    head=(1024,),
    optimizer="adam",
    max_epochs=10,
    batch_size=32,
    random_state=0,
)
clf.fit(train, y_train)
for row in clf.history_:
    print(f"epoch {row['epoch']:2}  loss {row['train_loss']:.3f}  {row['seconds']:.1f} s")
print(f"accuracy on {len(test)} held-out pictures: {clf.score(test, y_test):.3f}")

# %%
# Some of the held-out pictures, with what they are taken for:

tiles = list(zip(test[:8], clf.predict(test[:8]), strict=True))
sheet = save_sheet("predicted", [("held out", tiles)])
