"""A fitted classifier at work: as it is, as a torch module, compiled, and in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from common import arguments, pictures, report, take_turns

from sktl import PretrainedImageClassifier

BATCH = 32
CALLS = 30

Predict = Callable[[npt.NDArray[np.uint8]], Any]


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, images=256, repeats=3, compile=1)
    X, y = pictures(args.images)
    clf = PretrainedImageClassifier(cache=None).fit(X[:100], y[:100])
    in_float32 = PretrainedImageClassifier(cache=None, precision="float32").fit(X[:100], y[:100])
    module = in_float32.to_torch()
    sides: dict[str, Predict] = {
        f"predict, {clf.precision_}": clf.predict_proba,
        "predict, float32": in_float32.predict_proba,
        "to_torch": in_batches(with_torch(module)),
    }
    if args.compile:
        sides["to_torch, compiled"] = in_batches(with_torch(torch.compile(module, dynamic=True)))
    sides["to_onnx, ONNX Runtime"] = in_batches(with_onnx(in_float32))
    check_agreement(sides, X[: 2 * BATCH])
    unit = next(iter(sides))
    print("many images")
    report(take_turns({name: of_all(side, X) for name, side in sides.items()}, args.repeats), unit)
    print("one image")
    report(take_turns({name: of_one(side, X) for name, side in sides.items()}, args.repeats), unit)


def with_torch(module: Any) -> Predict:
    """Predict with a module that takes channels first."""

    @torch.inference_mode()
    def predict(X: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = module(torch.from_numpy(X).movedim(3, 1)).numpy()
        return probabilities

    return predict


def with_onnx(clf: Any) -> Predict:
    """Predict with ONNX Runtime, on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        clf.to_onnx(file)
        session = onnxruntime.InferenceSession(
            file.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name
    return lambda X: session.run(None, {name: np.ascontiguousarray(np.moveaxis(X, 3, 1))})[0]


def in_batches(predict: Predict) -> Predict:
    """Predict many images a batch at a time, as whoever has a bare module does."""
    return lambda X: np.concatenate([predict(X[i : i + BATCH]) for i in range(0, len(X), BATCH)])


def check_agreement(sides: dict[str, Predict], X: npt.NDArray[np.uint8]) -> None:
    """See that all sides do the same job; this also warms them up."""
    expected = sides["predict, float32"](X)
    for name, side in sides.items():
        difference = float(np.abs(side(X) - expected).max())
        print(f"  {name:<44}probabilities differ by {difference:.1e} at most")
        if difference > 0.1:
            raise SystemExit(f"{name} predicts something else")


def of_all(predict: Predict, X: npt.NDArray[np.uint8]) -> Callable[[], object]:
    """Predict all images."""
    return lambda: predict(X)


def of_one(predict: Predict, X: npt.NDArray[np.uint8]) -> Callable[[], float]:
    """Seconds for one image: the median of some calls."""
    return lambda: take_turns({"": lambda: predict(X[:1])}, CALLS)[""]


if __name__ == "__main__":
    main()
