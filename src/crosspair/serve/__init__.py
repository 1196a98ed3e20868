"""Web page and REST API for a library; requires the extras ``demo`` and ``search``."""
