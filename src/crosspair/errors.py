"""What can be wrong with what a user hands over.

Every message is one line that says what was found, where, and what to do. The command prints it
and exits with status 2; nothing else in the package catches these silently.
"""


class CrosspairError(Exception):
    """A fault in the user's input or surroundings, told in one line."""


class ManifestError(CrosspairError):
    """A manifest, a title file or a corpus folder is not what it should be."""


class VideoError(CrosspairError):
    """A video cannot give the frames that were asked of it."""


class RecipeError(CrosspairError):
    """A recipe, or a ``key=value`` given beside it, is not valid."""


class TextError(CrosspairError):
    """Word vectors, a language model, or titles cannot be used."""


class ModelError(CrosspairError):
    """A model folder or a checkpoint does not fit."""


class RunError(CrosspairError):
    """A run folder cannot be started, resumed or written."""
