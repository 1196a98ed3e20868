"""A searchable library of one's own videos: windows, encoding, the table, index, search."""

from crosspair.library.encoding import encode_whole, encode_windows
from crosspair.library.engines import Engine, engine
from crosspair.library.indexing import Indexed, forget, index
from crosspair.library.search import Moment, Searcher
from crosspair.library.store import Library, LibraryError
from crosspair.library.windows import Windows

__all__ = [
    "Engine",
    "Indexed",
    "Library",
    "LibraryError",
    "Moment",
    "Searcher",
    "Windows",
    "encode_whole",
    "encode_windows",
    "engine",
    "forget",
    "index",
]
