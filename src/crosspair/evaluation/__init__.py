"""What a representation is worth: the paper's protocols, and results with their origin."""

from crosspair.evaluation.accuracy import bootstrap_interval, class_details
from crosspair.evaluation.cache import cached_features
from crosspair.evaluation.feasibility import check_protocols
from crosspair.evaluation.featurefiles import load_features
from crosspair.evaluation.features import Features, embed_texts, extract_features
from crosspair.evaluation.frozen import frozen_results, random_like, results_beside_random
from crosspair.evaluation.knn import knn_predict
from crosspair.evaluation.linear import LinearConfig, linear_predict, train_linear
from crosspair.evaluation.lowshot import label_subset
from crosspair.evaluation.origin import Machine, Provenance, provenance
from crosspair.evaluation.protocol import Protocol, protocol_of
from crosspair.evaluation.results import Result, read_results, write_results
from crosspair.evaluation.retrieval import Retrieval, own_ranks, retrieval
from crosspair.evaluation.trial import FrozenConfig
from crosspair.evaluation.zeroshot import class_embeddings, draw_classes, zero_shot_predict

__all__ = [
    "Features",
    "FrozenConfig",
    "LinearConfig",
    "Machine",
    "Protocol",
    "Provenance",
    "Result",
    "Retrieval",
    "bootstrap_interval",
    "cached_features",
    "check_protocols",
    "class_details",
    "class_embeddings",
    "draw_classes",
    "embed_texts",
    "extract_features",
    "frozen_results",
    "knn_predict",
    "label_subset",
    "linear_predict",
    "load_features",
    "own_ranks",
    "protocol_of",
    "provenance",
    "random_like",
    "read_results",
    "results_beside_random",
    "retrieval",
    "train_linear",
    "write_results",
    "zero_shot_predict",
]
