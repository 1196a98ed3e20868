"""An embedded corpus of rendered videos with noisy titles, on which every command runs in minutes.

Its actions cannot be told from a single frame, so a model that recognises them has learnt motion.
Views must not be flipped: a flip makes left of right and clockwise of anticlockwise.
"""

from crosspair.corpora.rendered.actions import ACTIONS, PARTNERS, motion_of
from crosspair.corpora.rendered.corpus import Pair, plan, render_corpus
from crosspair.corpora.rendered.scene import Scene, frames_of, scene_of
from crosspair.corpora.rendered.titles import titles_of

__all__ = [
    "ACTIONS",
    "PARTNERS",
    "Pair",
    "Scene",
    "frames_of",
    "motion_of",
    "plan",
    "render_corpus",
    "scene_of",
    "titles_of",
]
