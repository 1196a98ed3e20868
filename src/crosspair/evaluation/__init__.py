"""What a representation is worth: pure functions of features and labels."""

from crosspair.evaluation.features import Features, embed_texts, extract_features
from crosspair.evaluation.knn import knn_predict
from crosspair.evaluation.retrieval import Retrieval, own_ranks, retrieval
from crosspair.evaluation.zeroshot import zero_shot_predict

__all__ = [
    "Features",
    "Retrieval",
    "embed_texts",
    "extract_features",
    "knn_predict",
    "own_ranks",
    "retrieval",
    "zero_shot_predict",
]
