"""The pairs that cells learn from: rendered once for all that share them, or the user's own."""

from __future__ import annotations

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
        self.folder, self.titles = folder, titles
        self._given = Manifest.read(given) if given else None
        self._sources: dict[CorpusPlan, Manifest] = {}
        # Of a quarter of a million pairs each of these takes seconds, for every cell anew.
        self._planned: dict[tuple[CorpusPlan, int], Manifest] = {}
        self._hashes: dict[tuple[CorpusPlan, int], str] = {}
        self._counts: dict[tuple[CorpusPlan, int, str], int] = {}

    def has_titles(self, corpus: CorpusPlan) -> bool:
        """Whether clean and tree titles are made here."""
        return self.titles and not corpus.manifest

    def planned(self, corpus: CorpusPlan, seed: int) -> Manifest:
        """The pairs as they will be, but for clean and tree titles; nothing is written.

        Args:
            corpus: which.
            seed: of what is drawn for each cell.

        Raises:
            RecipeError: a manifest is needed and none is given.
            ManifestError: settings that do not do.
        """
        key = _key(corpus, seed)
        if key not in self._planned:
            source = self._source(corpus)
            self._planned[key] = with_wrong_titles(source, corpus.wrong_titles, seed)
        return self._planned[key]

    def hash_of(self, corpus: CorpusPlan, seed: int) -> str:
        """What tells these pairs from others, see `planned`."""
        key = _key(corpus, seed)
        if key not in self._hashes:
            pairs = self.planned(corpus, seed)
            files = fingerprint(pairs) if corpus.manifest else ""  # what is rendered, seeds decide
            self._hashes[key] = pairs.hash + files
        return self._hashes[key]

    def count(self, corpus: CorpusPlan, seed: int, column: str) -> int:
        """Pairs of the train split with such a title and a video that is not broken.

        Raises:
            ManifestError: no pair has such a title.
        """
        key = (*_key(corpus, seed), column)
        if key not in self._counts:
            manifest = self.planned(corpus, seed)
            train = manifest.split("train")
            titles = train.column("title" if self.has_titles(corpus) else column)
            if len(train) and not any(titles):
                raise ManifestError(f'{manifest.path} has no {column}; "crosspair titles" fills it')
            errors = train.column("error")
            usable = (bool(t) and not e for t, e in zip(titles, errors, strict=True))
            self._counts[key] = sum(usable)
        return self._counts[key]

    def write(self, corpus: CorpusPlan, seed: int) -> Path:
        """Render, prepare and write what is not there yet; return the manifest's file."""
        source, pairs = self._source(corpus), self.planned(corpus, seed)
        if not corpus.manifest:
            self._render(corpus)
        if pairs is source and not self.has_titles(corpus):
            return source.path
        suffix = "-titles" if self.has_titles(corpus) else ""
        path = self.folder / f"{source.path.parent.name}-{pairs.hash}{suffix}.parquet"
        if not path.is_file():
            if self.has_titles(corpus):
                prepared, _ = prepare_titles(source, empty="raw")
                pairs = with_wrong_titles(prepared, corpus.wrong_titles, seed)
            pairs.moved(path).write(path)
        return path

    def _source(self, corpus: CorpusPlan) -> Manifest:
        if corpus.manifest:
            if self._given is None:
                raise RecipeError("this plan is for pairs of your own: give --manifest M")
            return self._given
        if self._given is not None:
            raise RecipeError(
                "this plan renders its pairs; leave out --manifest, or give corpus.manifest=true"
            )
        key = CorpusPlan(False, corpus.pairs, corpus.noise, corpus.seed)
        if key not in self._sources:
            rows = (pair.row for pair in scenes(key.pairs, key.seed, key.noise))
            self._sources[key] = manifest_of(rows, self._rendered(key) / "manifest.parquet")
        return self._sources[key]

    def _rendered(self, corpus: CorpusPlan) -> Path:
        return self.folder / f"rendered-{corpus.pairs}-{corpus.noise:g}-{corpus.seed}"

    def _render(self, corpus: CorpusPlan) -> None:
        with progress("rendering", corpus.pairs, "videos") as bar:
            render_corpus(
                self._rendered(corpus), corpus.pairs, corpus.seed, corpus.noise,
                progress=lambda done, _: bar.advance(done),
            )  # fmt: skip


def _key(corpus: CorpusPlan, seed: int) -> tuple[CorpusPlan, int]:
    """Without wrong titles there is nothing that the seed decides."""
    return corpus, seed if corpus.wrong_titles else 0
