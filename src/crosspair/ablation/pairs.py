"""The pairs that cells learn from: rendered once for all that share them, or the user's own."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from crosspair.ablation.plan import CorpusPlan
from crosspair.corpora import Manifest, manifest_of
from crosspair.corpora.fingerprint import fingerprint
from crosspair.corpora.rendered import render_corpus
from crosspair.corpora.rendered.corpus import plan as scenes
from crosspair.corpora.titles import prepare_titles
from crosspair.corpora.wrongtitles import with_wrong_titles
from crosspair.errors import ManifestError, RecipeError
from crosspair.progress import progress


class Pairs:
    """Manifests of the cells' pairs, first as they will be, then on the disk.

    Args:
        folder: for rendered videos and for manifests that differ from their source's.
        given: the user's manifest, if there is one.
        titles: whether rendered pairs get clean and tree titles, too. What is empty then has the
            title that it was made of, so that all columns have as many pairs.
    """

    def __init__(self, folder: Path, given: str | None = None, titles: bool = False) -> None:
        self.folder, self._titles = folder, titles
        self._given = Manifest.read(given) if given else None
        self._planned: dict[tuple[CorpusPlan, int], Manifest] = {}

    def planned(self, corpus: CorpusPlan, seed: int) -> Manifest:
        """The pairs as they will be, but for clean and tree titles; nothing is written.

        Args:
            corpus: which.
            seed: of what is drawn for each cell.

        Raises:
            RecipeError: a manifest is needed and none is given.
            ManifestError: settings that do not do.
        """
        key = (corpus, seed if corpus.wrong_titles else 0)
        if key not in self._planned:
            if corpus.wrong_titles:
                source = self._source(corpus)
                self._planned[key] = with_wrong_titles(source, corpus.wrong_titles, seed)
            else:
                self._planned[key] = self._given_or_to_render(corpus)
        return self._planned[key]

    def hash_of(self, corpus: CorpusPlan, seed: int) -> str:
        """What tells these pairs from others, see `planned`."""
        pairs = self.planned(corpus, seed)
        files = fingerprint(pairs) if corpus.manifest else ""  # what is rendered, seeds decide
        return _hash(pairs) + files

    def count(self, corpus: CorpusPlan, seed: int, column: str) -> int:
        """Pairs of the train split with such a title and a video that is not broken.

        Raises:
            ManifestError: no pair has such a title.
        """
        pairs = self.planned(corpus, seed)
        return _usable(pairs, "title" if self._makes_titles(corpus) else column)

    def write(self, corpus: CorpusPlan, seed: int) -> Path:
        """Render, prepare and write what is not there yet; return the manifest's file."""
        source, pairs = self._source(corpus), self.planned(corpus, seed)
        folder, titles = source.path.parent, self._makes_titles(corpus)
        if not corpus.manifest:
            with progress("rendering", corpus.pairs, "videos") as bar:
                render_corpus(
                    folder, corpus.pairs, corpus.seed, corpus.noise,
                    progress=lambda done, _: bar.advance(done),
                )  # fmt: skip
        if pairs is source and not titles:
            return source.path
        suffix = "-titles" if titles else ""
        path = self.folder / f"{folder.name}-{_hash(pairs)}{suffix}.parquet"
        if not path.is_file():
            if titles:
                prepared, _ = prepare_titles(source, empty="raw")
                pairs = with_wrong_titles(prepared, corpus.wrong_titles, seed)
            pairs.moved(path).write(path)
        return path

    def _makes_titles(self, corpus: CorpusPlan) -> bool:
        return self._titles and not corpus.manifest

    def _source(self, corpus: CorpusPlan) -> Manifest:
        """The pairs with their own titles."""
        return self.planned(replace(corpus, wrong_titles=0.0), 0)

    def _given_or_to_render(self, corpus: CorpusPlan) -> Manifest:
        if corpus.manifest:
            if self._given is None:
                raise RecipeError("this plan is for pairs of your own: give --manifest M")
            return self._given
        if self._given is not None:
            raise RecipeError(
                "this plan renders its pairs; leave out --manifest, or give corpus.manifest=true"
            )
        rows = (pair.row for pair in scenes(corpus.pairs, corpus.seed, corpus.noise))
        folder = self.folder / f"rendered-{corpus.pairs}-{corpus.noise:g}-{corpus.seed}"
        return manifest_of(rows, folder / "manifest.parquet")


# Of a quarter of a million pairs both take seconds, and every cell asks.
@lru_cache(maxsize=16)
def _hash(pairs: Manifest) -> str:
    return pairs.hash


@lru_cache(maxsize=16)
def _usable(pairs: Manifest, column: str) -> int:
    train = pairs.split("train")
    titles = train.column(column)
    if len(train) and not any(titles):
        raise ManifestError(f'{pairs.path} has no {column}; "crosspair titles" fills it')
    errors = train.column("error")
    return sum(bool(title) and not error for title, error in zip(titles, errors, strict=True))
