"""Web page for a library; requires the extras ``demo`` and ``search``."""

from crosspair.serve.app import serve

__all__ = ["serve"]
