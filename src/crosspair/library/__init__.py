"""A searchable library of videos, stored as a folder with a LanceDB table of window embeddings."""

from crosspair.evaluation.encode import InferenceEngine, encode_whole_videos, encode_windows, load_engine
from crosspair.evaluation.windows import Windows
from crosspair.library.index import IndexSummary, index_videos, remove_videos
from crosspair.library.query import QueryPart
from crosspair.library.search import Searcher, SearchHit
from crosspair.library.store import Library, LibraryError

__all__ = [
    "IndexSummary", "InferenceEngine", "Library", "LibraryError", "QueryPart", "SearchHit", "Searcher",
    "Windows", "encode_whole_videos", "encode_windows", "index_videos", "load_engine", "remove_videos",
]  # fmt: skip
