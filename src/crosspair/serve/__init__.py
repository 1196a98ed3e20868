"""A page for a library: search, play, classify. Needs the extras ``demo`` and ``search``."""

from crosspair.serve.app import serve

__all__ = ["serve"]
