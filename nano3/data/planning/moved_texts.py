"""Move texts between splits so that each split of a small dataset has a document.

The text rule has the same bounds for all datasets of a blend, so that equal texts share a split. A small dataset may
have no text in a split then. Texts of it are moved there, in all datasets. Which ones is decided in this order:

1. Datasets are taken by their number of different texts, the smallest first, then in the order of the blend.
2. If a dataset has too few texts for all its splits, train comes first, then valid, then test.
3. A split without a document gets its share of the documents, but at least one text, from the largest split of the
   dataset, which keeps at least one. Rare texts are moved first, then those with a small hash.
4. Each split of a dataset has a text that is kept there when texts of larger datasets are moved.
"""

from dataclasses import dataclass, field

import numpy as np

from nano3.config import PrepOptions
from nano3.data.planning.plan import SPLITS, DatasetPlan
from nano3.data.planning.splits import split_of


@dataclass
class Texts:
    """The different texts of a dataset, or of its beginning.

    Attributes:
        dataset: The dataset.
        hashes: Their hashes, sorted.
        counts: Number of documents of each.
    """

    dataset: DatasetPlan
    hashes: list[int]
    counts: dict[int, int]

    @property
    def description(self) -> str:
        """Number of documents in words."""
        documents = sum(self.counts.values())
        different = "" if documents == len(self.hashes) else f" of {len(self.hashes):,} different text(s)"
        return f"{documents} document(s){different}"


@dataclass
class MovedTexts:
    """Splits of texts that differ from what the bounds say.

    Attributes:
        options: Fractions of the splits.
        splits: Split of each moved text by its hash.
        kept: Hashes of texts that must not be moved any more.
    """

    options: PrepOptions
    splits: dict[int, int] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def complete(self, texts: Texts) -> None:
        """Give each requested split of a dataset a text, or add a warning to the dataset."""
        plain = split_of(np.array(texts.hashes, np.uint64), texts.dataset.bounds).tolist()
        groups: list[list[int]] = [[] for _ in SPLITS]
        for text, split in zip(texts.hashes, plain, strict=True):
            groups[self.splits.get(text, split)].append(text)
        shares = (1.0, self.options.valid_fraction, self.options.test_fraction)
        requested = [split for split, share in enumerate(shares) if share > 0]
        filled = requested[: len(texts.hashes)]
        for split in filled:
            if not groups[split]:
                self.fill(texts, groups, split, shares[split] if split else 0.0, filled)
            if groups[split] and self.kept.isdisjoint(groups[split]):
                self.kept.add(groups[split][0])
        for split in requested:
            if not groups[split] and split:
                texts.dataset.warnings.append(
                    f"dataset {texts.dataset.name!r}: {texts.description}, too few for a {SPLITS[split]} split. "
                    f"Equal texts are in the same split. Take more documents, or set {SPLITS[split]}_fraction=0."
                )

    def fill(self, texts: Texts, groups: list[list[int]], split: int, share: float, filled: list[int]) -> None:
        """Move texts to a split without a document.

        Args:
            texts: The texts of the dataset.
            groups: Hashes of the texts in each split; updated.
            split: The split.
            share: Share of the documents to move; at least one text is moved.
            filled: Splits that need a text; any other one may be emptied.
        """
        movable = [[text for text in group if text not in self.kept] for group in groups]
        donors = [i for i, free in enumerate(movable) if free and (len(groups[i]) > 1 or i not in filled)]
        if not donors:
            return
        donor = max(donors, key=lambda i: (len(groups[i]), -i))
        wanted = round(share * sum(texts.counts.values()))
        most = len(groups[donor]) - (1 if donor in filled else 0)
        moved = 0
        for text in sorted(movable[donor], key=lambda text: (texts.counts[text], text))[:most]:
            groups[split].append(text)
            groups[donor].remove(text)
            self.splits[text] = split
            moved += texts.counts[text]
            if moved >= wanted:
                break


def move_texts(
    datasets: list[DatasetPlan], hashes: list[np.ndarray | None], options: PrepOptions
) -> list[tuple[int, int]]:
    """Return (hash, split) of the texts to move, sorted by hash.

    Args:
        datasets: The datasets of the blend; warnings are added to those with too few texts.
        hashes: For each dataset the uint64 hashes of its documents, or of those at its beginning; None for a dataset
            too large to be adjusted.
        options: Fractions of the splits.
    """
    small = []
    for dataset, found in zip(datasets, hashes, strict=True):
        if found is not None:
            unique, counts = np.unique(found, return_counts=True)
            small.append(Texts(dataset, unique.tolist(), dict(zip(unique.tolist(), counts.tolist(), strict=True))))
    moved = MovedTexts(options)
    for texts in sorted(small, key=lambda texts: len(texts.hashes)):
        moved.complete(texts)
    return sorted(moved.splits.items())
