"""Titles of rendered videos: the vocabulary, and sentences with a controlled amount of noise.

The first entry of each tuple is the plain name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from crosspair.corpora.rendered.scene import Scene

ACTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "rising": ("rising", "rises", "going up", "climbs", "lifting off", "soaring upwards"),
    "falling": ("falling", "falls", "going down", "drops", "sinking", "tumbling downwards"),
    "moving left": ("moving left", "moving to the left", "heading left", "goes leftwards"),
    "moving right": ("moving right", "moving to the right", "heading right", "goes rightwards"),
    "growing": ("growing", "grows", "getting bigger", "expanding", "swelling", "inflates"),
    "shrinking": ("shrinking", "shrinks", "getting smaller", "contracting", "deflates"),
    "spinning clockwise": ("spinning clockwise", "turning clockwise", "rotating clockwise", "spins clockwise"),
    "spinning anticlockwise": (
        "spinning anticlockwise", "turning anticlockwise", "rotating counterclockwise", "spins anticlockwise",
    ),
    "orbiting clockwise": ("orbiting clockwise", "circling clockwise", "going round clockwise", "orbits clockwise"),
    "orbiting anticlockwise": (
        "orbiting anticlockwise", "circling anticlockwise", "going round counterclockwise", "orbits anticlockwise",
    ),
    "coming together": ("coming together", "approaching each other", "meeting", "getting closer", "about to meet"),
    "drifting apart": ("drifting apart", "separating from each other", "parting", "splitting up", "breaking apart"),
    "shaking sideways": (
        "shaking sideways", "wobbling from side to side", "shakes side to side", "jiggling sideways",
    ),
    "bouncing": ("bouncing", "bounces", "hopping up and down", "jumping", "boing boing"),
    "swinging": ("swinging", "swings", "swaying like a pendulum", "rocking to and fro"),
    "blinking": ("blinking", "blinks", "flashing on and off", "flickering", "lighting up"),
}  # fmt: skip

FOREIGN_ACTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "rising": ("subiendo", "qui monte", "ऊपर जाता", "上昇"),
    "falling": ("cayendo", "qui tombe", "नीचे गिरता", "落下"),
    "moving left": ("hacia la izquierda", "vers la gauche", "बाएँ जाता", "左へ"),
    "moving right": ("hacia la derecha", "vers la droite", "दाएँ जाता", "右へ"),
    "growing": ("creciendo", "qui grandit", "बढ़ता हुआ", "大きくなる"),
    "shrinking": ("encogiendo", "qui rétrécit", "सिकुड़ता हुआ", "小さくなる"),
    "spinning clockwise": ("girando a la derecha", "tourne clockwise", "右回転"),
    "spinning anticlockwise": ("girando a la izquierda", "tourne anticlockwise", "左回転"),
    "orbiting clockwise": ("orbitando clockwise", "en orbite clockwise", "右周り"),
    "orbiting anticlockwise": ("orbitando anticlockwise", "en orbite anticlockwise", "左周り"),
    "coming together": ("juntándose", "se rapprochent", "पास आते", "近づく"),
    "drifting apart": ("separándose", "s'éloignent", "दूर जाते", "離れる"),
    "shaking sideways": ("temblando de lado", "tremble de côté", "हिलता", "横揺れ"),
    "bouncing": ("rebotando", "qui rebondit", "उछलता", "弾む"),
    "swinging": ("balanceándose", "se balance", "झूलता", "揺れる振り子"),
    "blinking": ("parpadeando", "qui clignote", "टिमटिमाता", "点滅"),
}

SHAPE_WORDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ball": (("ball", "balls"), ("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes"), ("block", "blocks")),
    "triangle": (("triangle", "triangles"), ("pyramid", "pyramids")),
    "star": (("star", "stars"), ("little star", "little stars")),
    "heart": (("heart", "hearts"), ("love heart", "love hearts")),
    "ring": (("ring", "rings"), ("donut", "donuts"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"), ("plus sign", "plus signs")),
    "moon": (("moon", "moons"), ("crescent", "crescents")),
    "arrow": (("arrow", "arrows"), ("pointer", "pointers")),
    "fish": (("fish", "fish"), ("goldfish", "goldfish"), ("fishy", "fishies")),
    "house": (("house", "houses"), ("home", "homes"), ("hut", "huts")),
}
"""Singular and plural of each synonym."""

COLOUR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "turquoise": ("turquoise", "teal", "cyan"),
}

SENTENCE_TEMPLATES = (
    "{}", "{}", "{}", "a video of {}", "watch {}", "look at {}", "here is {}", "just {}", "i filmed {}", "{} again",
)  # fmt: skip

CHANNELS = (
    "ShapeLab:", "[4K]", "DailyLoops |", "Kid Planet TV -", "EP. 12 |", "Mr Pixel presents:", "(Official)",
    "Studio 7 ▶", "RELAX WITH ANNA -", "My first vlog:",
)  # fmt: skip

TAGS = (
    "#satisfying", "#shorts", "#fyp", "#animation", "#loop", "#viral", "#asmr", "#shape", "#cute", "#relaxing",
    "#foryou", "#motiongraphics",
)  # fmt: skip

EMOJI = ("😂", "😍", "🔥", "✨", "👀", "🎉", "❤️", "🙈", "💯", "😱", "🌈", "👍")

ASIDES = (
    "subscribe for more", "part 2", "wait for the end", "my mom made this", "so relaxing", "must see", "best of 2019",
    "full hd", "link in bio", "at the park", "with music", "ten hours version", "no sound", "how did this happen",
    "for beginners", "home made",
)  # fmt: skip

FOREIGN_ASIDES = (
    "muy bonito", "qué increíble", "trop beau", "à voir absolument", "sehr schön",
    "बहुत सुंदर", "मज़ेदार वीडियो", "かわいい", "すごい動画", "очень красиво", "대박", "رائع",
)  # fmt: skip

EMPTY_TITLES = (
    "untitled", "video", "my new video", "MOV_0042", "test", "something i made", "no title", "watch till the end",
    "vid 3",
)  # fmt: skip


_T = TypeVar("_T")

_TITLE = 3  # random stream of a pair, see `scene`
_PLURAL = ("coming together", "drifting apart")
_COUNTS = ("two", "2", "a pair of", "both")


def compose_titles(scenes: Sequence[Scene], noise: float) -> list[str]:
    """Write the title of every scene.

    Each fault is drawn independently for each title. Its probability depends on ``noise``:

    ====================================================  ============  =====  =====  =====
    fault                                                 probability   at 0   at .3  at 1
    ====================================================  ============  =====  =====  =====
    the title describes a scene with another action       noise²        0      0.09   1
    the action is missing                                 0.4 · noise   0      0.12   0.4
    the action is in another language                     0.2 · noise   0      0.06   0.2
    each of: channel name, hashtags, emoji, irrelevant
    words, irrelevant words in another language, CAPS,
    odd punctuation                                       0.6 · noise   0      0.18   0.6
    ====================================================  ============  =====  =====  =====

    At 0 every title is right and uses one of the synonyms of its action. At any noise, 40 % of the
    titles omit the shape and 60 % its colour.

    Args:
        scenes: all scenes of a corpus; a wrong title describes another of them.
        noise: 0 (clean) to 1 (all wrong).
    """
    titles = []
    for scene in scenes:
        rng, subject = np.random.default_rng((scene.seed, scene.index, _TITLE)), scene
        if rng.uniform() < noise**2:
            others = [other for other in scenes if other.label != scene.label]
            subject = others[rng.integers(len(others))] if others else scene
        titles.append(_decorate(_compose_sentence(subject, noise, rng), noise, rng))
    return titles


def _compose_sentence(scene: Scene, noise: float, rng: np.random.Generator) -> str:
    """Describe a scene by colour, shape and action, of which some are omitted at random."""
    says_action, says_shape, says_colour = rng.uniform(size=3) >= (0.4 * noise, 0.4, 0.6)
    plural = scene.label in _PLURAL
    parts = []
    if says_colour:
        parts.append(_choose(COLOUR_WORDS[scene.colour], rng))
    if says_shape:
        parts.append(_choose(SHAPE_WORDS[scene.shape], rng)[plural])
    elif says_colour:
        parts.append("ones" if plural else "one")
    if parts:
        article = _choose(_COUNTS if plural else ("a", "a", "the", "this", "my"), rng)
        parts.insert(0, "an" if article == "a" and parts[0][0] in "aeiou" else article)
    if says_action:
        words = ACTION_WORDS[scene.label]
        if rng.uniform() < 0.2 * noise:
            parts.append(_choose(FOREIGN_ACTION_WORDS[scene.label], rng))
        else:
            parts.append(words[0] if rng.uniform() < 0.5 else _choose(words, rng))
    if not parts:
        return _choose(EMPTY_TITLES, rng)
    return _choose(SENTENCE_TEMPLATES, rng).format(" ".join(parts))


def _decorate(sentence: str, noise: float, rng: np.random.Generator) -> str:
    """At random, add unrelated text and punctuation, and put the first letter or all in upper case."""
    channel, tags, emoji, aside, foreign, caps, marks = rng.uniform(size=7) < 0.6 * noise
    title = sentence[0].upper() + sentence[1:] if rng.uniform() < 0.7 else sentence
    if aside:
        title += _choose((" - {}", ", {}", " ({})", " {}"), rng).format(_choose(ASIDES, rng))
    if foreign:
        title = f"{title} {_choose(FOREIGN_ASIDES, rng)}"
    if marks:
        title += _choose(("!!!", "...", " ?!", "!", " ~~", "!!1", " :)"), rng)
    if caps:
        title = title.upper()
    if channel:
        title = f"{_choose(CHANNELS, rng)} {title}"
    if tags:
        count = int(rng.integers(1, 4))
        chosen = rng.permutation(len(TAGS))[:count]
        title = " ".join([title, *(TAGS[i] for i in chosen)])
    if emoji:
        title += " " + _choose(EMOJI, rng) * int(rng.integers(1, 4))
    return title


def _choose(choices: Sequence[_T], rng: np.random.Generator) -> _T:
    return choices[int(rng.integers(len(choices)))]
