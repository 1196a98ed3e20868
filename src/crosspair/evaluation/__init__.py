"""Evaluate video features with the paper's protocols, and store results with their provenance."""

from crosspair.config import MultiviewConfig
from crosspair.evaluation.evaluate import EvaluationConfig, check_protocols, evaluate_model, randomize_weights
from crosspair.evaluation.features import Features, cached_features, embed_texts, extract_features, load_features
from crosspair.evaluation.fewshot import FewshotConfig, logistic_predict
from crosspair.evaluation.knn import KnnConfig, knn_predict
from crosspair.evaluation.linear import (
    LinearConfig,
    LowshotConfig,
    few_labels,
    label_subset,
    linear_predict,
    train_linear,
)
from crosspair.evaluation.multiview import multiview_results
from crosspair.evaluation.results import Result, bootstrap_interval, class_details, read_results, write_results
from crosspair.evaluation.retrieval import retrieval, target_ranks
from crosspair.evaluation.zeroshot import ZeroshotConfig, class_embeddings, draw_classes, zero_shot_predict
from crosspair.provenance import Machine, Provenance, provenance

__all__ = [
    "EvaluationConfig", "Features", "FewshotConfig", "KnnConfig", "LinearConfig", "LowshotConfig", "Machine",
    "MultiviewConfig", "Provenance", "Result", "ZeroshotConfig", "bootstrap_interval", "cached_features",
    "check_protocols",
    "class_details", "class_embeddings", "draw_classes", "embed_texts", "evaluate_model", "extract_features",
    "few_labels", "knn_predict", "label_subset", "linear_predict", "load_features", "logistic_predict",
    "multiview_results", "provenance",
    "randomize_weights", "read_results", "retrieval", "target_ranks", "train_linear", "write_results",
    "zero_shot_predict",
]  # fmt: skip
