"""Web page for a library: search, play and classify. Requires the extras ``demo`` and ``search``."""

from crosspair.serve.app import serve

__all__ = ["serve"]
