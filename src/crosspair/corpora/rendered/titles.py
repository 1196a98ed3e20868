"""Titles as people write them: synonyms, missing words, clutter, and some about another video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from crosspair.corpora.rendered import words
from crosspair.corpora.rendered.scene import Scene

_T = TypeVar("_T")

_TITLE = 3  # the stream of a pair's random numbers that titles draw from
_PLURAL = ("coming together", "drifting apart")
_COUNTS = ("two", "2", "a pair of", "both")


def titles_of(scenes: Sequence[Scene], noise: float) -> list[str]:
    """Write the title of every scene.

    What ``noise`` (0 to 1) does; every chance is drawn for every title by itself:

    ====================================================  ============  =====  =====  =====
    fault                                                 chance        at 0   at .3  at 1
    ====================================================  ============  =====  =====  =====
    the title is of a scene with another action           noise²        0      0.09   1
    it does not say the action                            0.4 · noise   0      0.12   0.4
    the action is in another language                     0.2 · noise   0      0.06   0.2
    each of: channel name, hashtags, emoji, irrelevant
    words, irrelevant words in another language, CAPS,
    odd punctuation                                       0.6 · noise   0      0.18   0.6
    ====================================================  ============  =====  =====  =====

    At 0 each title is right, in one of the synonyms of its action. People tell what happens, and
    not always to what: whatever the noise, 40 % do not say the thing and 60 % not its colour.

    Args:
        scenes: all scenes of a corpus; a wrong title is drawn from another one of them.
        noise: the dial.
    """
    return [_title(scene, scenes, noise) for scene in scenes]


def _title(scene: Scene, scenes: Sequence[Scene], noise: float) -> str:
    rng = np.random.default_rng((scene.seed, scene.index, _TITLE))
    wrong = rng.uniform() < noise**2
    subject = _other(scene, scenes, rng) if wrong else scene
    return _decorated(_sentence(subject, noise, rng), noise, rng)


def _other(scene: Scene, scenes: Sequence[Scene], rng: np.random.Generator) -> Scene:
    others = [other for other in scenes if other.label != scene.label]
    return others[rng.integers(len(others))] if others else scene


def _sentence(scene: Scene, noise: float, rng: np.random.Generator) -> str:
    says_action, says_thing, says_colour = rng.uniform(size=3) >= (0.4 * noise, 0.4, 0.6)
    plural = scene.label in _PLURAL
    parts = []
    if says_colour:
        parts.append(_one(words.COLOUR_WORDS[scene.colour], rng))
    if says_thing:
        parts.append(_one(words.THING_WORDS[scene.thing], rng)[plural])
    elif says_colour:
        parts.append("ones" if plural else "one")
    if parts:
        parts.insert(0, _one(_COUNTS, rng) if plural else _article(parts[0], rng))
    if says_action:
        parts.append(_action(scene.label, noise, rng))
    if not parts:
        return _one(words.EMPTY_TITLES, rng)
    return _one(words.FRAMES_OF_SPEECH, rng).format(" ".join(parts))


def _action(label: str, noise: float, rng: np.random.Generator) -> str:
    if rng.uniform() < 0.2 * noise:
        return _one(words.ACTION_WORDS_ABROAD[label], rng)
    synonyms = words.ACTION_WORDS[label]
    return synonyms[0] if rng.uniform() < 0.5 else _one(synonyms, rng)


def _article(following: str, rng: np.random.Generator) -> str:
    article = _one(("a", "a", "the", "this", "my"), rng)
    return "an" if article == "a" and following[0] in "aeiou" else article


def _decorated(sentence: str, noise: float, rng: np.random.Generator) -> str:
    """Add clutter around a sentence and spoil its writing."""
    channel, tags, emoji, aside, abroad, caps, marks = rng.uniform(size=7) < 0.6 * noise
    title = sentence[0].upper() + sentence[1:] if rng.uniform() < 0.7 else sentence
    if aside:
        title += _one((" - {}", ", {}", " ({})", " {}"), rng).format(_one(words.ASIDES, rng))
    if abroad:
        title = f"{title} {_one(words.ASIDES_ABROAD, rng)}"
    if marks:
        title += _one(("!!!", "...", " ?!", "!", " ~~", "!!1", " :)"), rng)
    if caps:
        title = title.upper()
    if channel:
        title = f"{_one(words.CHANNELS, rng)} {title}"
    if tags:
        count = int(rng.integers(1, 4))
        chosen = rng.permutation(len(words.TAGS))[:count]
        title = " ".join([title, *(words.TAGS[i] for i in chosen)])
    if emoji:
        title += " " + _one(words.EMOJI, rng) * int(rng.integers(1, 4))
    return title


def _one(choices: Sequence[_T], rng: np.random.Generator) -> _T:
    return choices[int(rng.integers(len(choices)))]
