"""A generated corpus of videos with noisy titles, on which every command runs in minutes.

Its actions cannot be recognised from single frames, so a model that classifies them has learnt
motion. Views must not be flipped: a flip exchanges left and right, clockwise and anticlockwise.
"""

from crosspair.corpora.rendered.render import Pair, plan, render_corpus
from crosspair.corpora.rendered.scene import ACTIONS, PARTNERS, Scene, draw_motion, draw_scene, render_frames
from crosspair.corpora.rendered.titles import compose_titles

__all__ = [
    "ACTIONS", "PARTNERS", "Pair", "Scene", "compose_titles", "draw_motion", "draw_scene", "plan",
    "render_corpus", "render_frames",
]  # fmt: skip
