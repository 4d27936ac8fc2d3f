"""Pictures of fits, searches, predictions and features, as scikit-learn's Display classes.

They need matplotlib: ``pip install sktl[plot]``.
"""

from .confusion import ImageConfusionMatrixDisplay
from .explanations import ExplanationDisplay
from .feature_map import FeatureMapDisplay
from .freeze_search import FreezeSearchDisplay
from .numbers import ImagePredictionErrorDisplay
from .predictions import ImagePredictionsDisplay
from .training_curve import TrainingCurveDisplay

__all__ = [
    "ExplanationDisplay",
    "FeatureMapDisplay",
    "FreezeSearchDisplay",
    "ImageConfusionMatrixDisplay",
    "ImagePredictionErrorDisplay",
    "ImagePredictionsDisplay",
    "TrainingCurveDisplay",
]
