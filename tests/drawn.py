"""Displays of made-up data."""

import numpy as np

from sktl.plotting import (
    FreezeSearchDisplay,
)


def history(last=0.55):
    losses = [2.1, 1.6, 1.2, 0.9, 0.7, last]
    return [
        {
            "epoch": i + 1,
            "train_loss": loss,
            "valid_loss": 0.8 * loss + 0.5 + 0.05 * i,
            "valid_acc": 1 - 0.35 * loss,
            "unfrozen_stages": 1 + i // 2,
        }
        for i, loss in enumerate(losses)
    ]


def freeze_search(best=0.9, worst=0.6):
    freeze = ["none", 2, -1, "all"]
    params = [{"clf__freeze": f, "clf__lr": lr} for f in freeze for lr in (1e-4, 1e-2)]
    results = {
        "params": params,
        "mean_test_score": np.array([0.7, worst, 0.8, 0.82, best, 0.85, 0.8, 0.78]),
        "std_test_score": np.full(8, 0.03),
        "mean_fit_time": np.array([9.0, 9.5, 7.0, 7.2, 3.0, 3.1, 1.0, 1.1]),
    }
    return FreezeSearchDisplay(
        cv_results=results, depths=np.repeat([0, 2, 4, 5], 2), param="clf__freeze",
        stages=["stem", "layer1", "layer2", "layer3", "layer4"],
    ).plot()  # fmt: skip


def pictures(n, side=24):
    """Squares on a slope of grey, each at a place and of a colour of its own."""
    slope = np.broadcast_to(np.linspace(60, 200, side), (side, side))
    found = np.repeat(slope[None, :, :, None], n, axis=0).repeat(3, axis=3).astype(np.uint8)
    for i in range(n):
        top, left = 3 * i % (side - 8), 5 * i % (side - 8)
        found[i, top : top + 8, left : left + 8] = (30 * i % 255, 255 - 20 * i % 255, 90)
    return found
