"""An embedded corpus of rendered videos with noisy titles, on which every command runs in minutes.

Its actions cannot be told from a single frame, so a model that recognises them has learnt motion.
Views must not be flipped: a flip makes left of right and clockwise of anticlockwise.
"""

from crosspair.corpora.rendered.actions import ACTIONS, PARTNERS, motion_of
from crosspair.corpora.rendered.render import Pair, plan, render_corpus
from crosspair.corpora.rendered.scene import Scene, draw_scene, render_frames
from crosspair.corpora.rendered.titles import compose_titles

__all__ = [
    "ACTIONS",
    "PARTNERS",
    "Pair",
    "Scene",
    "compose_titles",
    "draw_scene",
    "motion_of",
    "plan",
    "render_corpus",
    "render_frames",
]
