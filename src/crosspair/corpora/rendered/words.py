"""The words titles are made of. The first of each list is the plain name of what it stands for."""

from __future__ import annotations

from collections.abc import Mapping

ACTION_WORDS: Mapping[str, tuple[str, ...]] = {
    "rising": ("rising", "rises", "going up", "climbs", "lifting off", "soaring upwards"),
    "falling": ("falling", "falls", "going down", "drops", "sinking", "tumbling downwards"),
    "moving left": ("moving left", "moving to the left", "heading left", "goes leftwards"),
    "moving right": ("moving right", "moving to the right", "heading right", "goes rightwards"),
    "growing": ("growing", "grows", "getting bigger", "expanding", "swelling", "inflates"),
    "shrinking": ("shrinking", "shrinks", "getting smaller", "contracting", "deflates"),
    "spinning clockwise": (
        *("spinning clockwise", "turning clockwise", "rotating clockwise"),
        "spins clockwise",
    ),
    "spinning anticlockwise": (
        *("spinning anticlockwise", "turning anticlockwise", "rotating counterclockwise"),
        "spins anticlockwise",
    ),
    "orbiting clockwise": (
        *("orbiting clockwise", "circling clockwise", "going round clockwise"),
        "orbits clockwise",
    ),
    "orbiting anticlockwise": (
        *("orbiting anticlockwise", "circling anticlockwise"),
        *("going round counterclockwise", "orbits anticlockwise"),
    ),
    "coming together": (
        *("coming together", "approaching each other", "meeting", "getting closer"),
        "about to meet",
    ),
    "drifting apart": (
        *("drifting apart", "separating from each other", "parting", "splitting up"),
        "breaking apart",
    ),
    "shaking sideways": (
        *("shaking sideways", "wobbling from side to side", "shakes side to side"),
        "jiggling sideways",
    ),
    "bouncing": ("bouncing", "bounces", "hopping up and down", "jumping", "boing boing"),
    "swinging": ("swinging", "swings", "swaying like a pendulum", "rocking to and fro"),
    "blinking": ("blinking", "blinks", "flashing on and off", "flickering", "lighting up"),
}

ACTION_WORDS_ABROAD: Mapping[str, tuple[str, ...]] = {
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

THING_WORDS: Mapping[str, tuple[tuple[str, str], ...]] = {
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
"""Singular and plural."""

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

FRAMES_OF_SPEECH = (
    *("{}", "{}", "{}", "a video of {}", "watch {}", "look at {}", "here is {}"),
    *("just {}", "i filmed {}", "{} again"),
)

CHANNELS = (
    *("ShapeLab:", "[4K]", "DailyLoops |", "Kid Planet TV -", "EP. 12 |", "Mr Pixel presents:"),
    *("(Official)", "Studio 7 ▶", "RELAX WITH ANNA -", "My first vlog:"),
)

TAGS = (
    *("#satisfying", "#shorts", "#fyp", "#animation", "#loop", "#viral", "#asmr", "#shape"),
    *("#cute", "#relaxing", "#foryou", "#motiongraphics"),
)

EMOJI = ("😂", "😍", "🔥", "✨", "👀", "🎉", "❤️", "🙈", "💯", "😱", "🌈", "👍")

ASIDES = (
    *("subscribe for more", "part 2", "wait for the end", "my mom made this", "so relaxing"),
    *("must see", "best of 2019", "full hd", "link in bio", "at the park", "with music"),
    *("ten hours version", "no sound", "how did this happen", "for beginners", "home made"),
)

ASIDES_ABROAD = (
    *("muy bonito", "qué increíble", "trop beau", "à voir absolument", "sehr schön"),
    *("बहुत सुंदर", "मज़ेदार वीडियो", "かわいい", "すごい動画", "очень красиво", "대박", "رائع"),
)

EMPTY_TITLES = (
    *("untitled", "video", "my new video", "MOV_0042", "test", "something i made", "no title"),
    *("watch till the end", "vid 3"),
)
