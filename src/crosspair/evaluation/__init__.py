"""What a representation is worth: the paper's protocols, and results with their origin."""

from crosspair.evaluation.features import Features, embed_texts, extract_features
from crosspair.evaluation.frozen import frozen_results, random_like, results_beside_random
from crosspair.evaluation.knn import knn_predict
from crosspair.evaluation.origin import Machine, Provenance, provenance
from crosspair.evaluation.results import Result, read_results, write_results
from crosspair.evaluation.retrieval import Retrieval, own_ranks, retrieval
from crosspair.evaluation.zeroshot import zero_shot_predict

__all__ = [
    "Features",
    "Machine",
    "Provenance",
    "Result",
    "Retrieval",
    "embed_texts",
    "extract_features",
    "frozen_results",
    "knn_predict",
    "own_ranks",
    "provenance",
    "random_like",
    "read_results",
    "results_beside_random",
    "retrieval",
    "write_results",
    "zero_shot_predict",
]
