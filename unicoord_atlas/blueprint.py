"""What an invented atlas is like, before a cell is drawn.  Shapes: g genes, t types, p programmes, f platforms.

Types form a tree: class, lineage, type.  Classes and lineages differ in many genes.  A lineage has two types, which
differ only in programmes (their markers, a state, more or less of the shared ones), and a cell may be anywhere between
them: the first is small and sharp, the second large and reaches out to it.  That is what makes annotation hard: the
best border between siblings is not half-way, and some cells lie on the other side of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ORGANS = (
    "adipose", "adrenal gland", "bladder", "blood", "bone marrow", "brain", "breast", "cervix", "chorionic villus",
    "colon", "esophagus", "eye", "fallopian tube", "gallbladder", "heart", "ileum", "jejunum", "kidney", "liver",
    "lung", "lymph node", "muscle", "omentum", "ovary", "pancreas", "placenta", "pleura", "prostate", "skin",
    "spinal cord", "spleen", "stomach", "testis", "thymus", "thyroid", "trachea", "ureter", "uterus",
)  # fmt: skip
NUM_DATASETS = 116
"""Of all 38 organs, as in hECA v1."""
CLASSES = ("endothelial", "stromal", "myeloid", "lymphoid", "epithelial", "neural", "muscle", "secretory")
NUM_COMMON_CLASSES = 4
"""The first classes occur in most organs, the others in few."""
CELLS_PER_TYPE = 200
"""Small atlases have fewer types, so that there are cells to learn each from."""
FEWEST_TYPES, MOST_TYPES = 16, 104
SHARP_ABUNDANCE = 0.5
"""Of a sharp type, in multiples of its sibling's."""
RARE_EVERY, RARE_ABUNDANCE = 8, 0.3
"""Every so manieth lineage is rare, in multiples of what it would be."""
NUM_FACTORS = 10
"""What lineages are combinations of: a few directions in gene space hold all of them, as principal components show."""
NUM_STATES = 8
"""Programmes of which many types have one, and their siblings the next."""
NUM_STEPS = 4
"""Programmes that are active one after the other along each gradient."""
NUM_SHARED = 12
"""Programmes that cells of all types have more or less of: those of the two gradients first."""
REFERENCE_COUNTS = 4000.0
MARKER_SHARE, STATE_SHARE, SHARED_SHARE = 0.06, 0.4, 0.6
"""What a fully active programme makes, in multiples of REFERENCE_COUNTS."""
LEAK = 0.03
"""What is left of a programme in cells that do not have it."""
_MARKER_GENES, _STATE_GENES, _SHARED_GENES = 0.12, 0.04, 0.08
"""Of all genes, those in the programmes of a kind together."""
_MEAN_SPREAD = 2.3
"""Standard deviation of the log of mean expression over genes."""
_MOST_MEAN = 100.0
_CLASS_SPREAD, _LINEAGE_SPREAD = 0.3, 0.45
_PLATFORM_SPREAD = 0.4
_UNLABELLED_DATASETS = 0.08
_ORGAN_SPREAD = 0.7


@dataclass(frozen=True, slots=True)
class Platform:
    """How a sequencing technology sees cells."""

    name: str
    share: float
    """Of the datasets."""
    genes: float
    """Genes detected in its median cell, in multiples of the atlas's median."""
    reads: float = 1.0
    """Counts that a molecule leaves; 1 where molecules are counted."""


PLATFORMS = (
    Platform("10X", 0.60, 1.1),
    Platform("Microwell-seq", 0.16, 0.5),
    Platform("Drop-seq", 0.06, 0.65),
    Platform("Seq-Well", 0.05, 0.7),
    Platform("Smart-seq2", 0.13, 4.0, reads=4.0),
)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that the organs of an atlas share."""

    types: tuple[str, ...]
    classes_t: NDArray[np.intp]
    abundance_t: NDArray[np.float64]
    mean_tg: NDArray[np.float32]
    """Molecules of a cell of the type with all its programmes fully active."""
    programme_g: NDArray[np.int16]
    """Programme of each gene: first come the markers of each type, then the states, then the shared ones, then none."""
    usage_tp: NDArray[np.float64]
    """0..1: how much a type uses each shared programme."""
    log_efficiency_fg: NDArray[np.float32]
    """Log of how well a platform sees a gene, before the donor's own part."""
    platforms: NDArray[np.intp]
    """Platform of each dataset."""
    unlabelled_datasets: NDArray[np.bool_]

    @property
    def num_types(self) -> int:
        """Number of types; type i and i ^ 1 are siblings."""
        return len(self.types)

    @property
    def num_programmes(self) -> int:
        """Number of programmes, without none."""
        return self.num_types + NUM_STATES + NUM_SHARED


def state_of(types: NDArray[np.intp]) -> NDArray[np.intp]:
    """State of each type: siblings have neighbouring ones."""
    return types % NUM_STATES


def invent_means(num_genes: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(g,) molecules of each gene in an average cell."""
    mean_g = np.exp(rng.normal(0, _MEAN_SPREAD, num_genes))
    means: NDArray[np.float64] = np.minimum(mean_g * (REFERENCE_COUNTS / mean_g.sum()), _MOST_MEAN)
    return means


def fill_means(sum_g: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(g,) molecules in an average cell by the sums of real ones; NaN, not measured, gets a mean of the lower half."""
    known = np.sort(sum_g[~np.isnan(sum_g)])
    filled_g = np.where(np.isnan(sum_g), rng.choice(known[: len(known) // 2 + 1], len(sum_g)), sum_g)
    means: NDArray[np.float64] = filled_g * (REFERENCE_COUNTS / filled_g.sum())
    return means


def make_blueprint(mean_g: NDArray[np.float64], num_cells: int, rng: np.random.Generator) -> Blueprint:
    """Invent types, programmes and platforms for genes of these means."""
    num_genes = len(mean_g)
    num_types = 2 * (min(max(num_cells // CELLS_PER_TYPE, FEWEST_TYPES), MOST_TYPES) // 2)
    classes_t = np.repeat(np.arange(num_types // 2) % len(CLASSES), 2)
    numbers = np.zeros(len(CLASSES), int)
    types = []
    for number in classes_t:
        numbers[number] += 1
        types.append(f"{CLASSES[number]} {numbers[number]}")
    abundance_t = np.repeat(np.exp(rng.normal(0, 0.5, num_types // 2)), 2) * np.exp(rng.normal(0, 0.2, num_types))
    abundance_t[::2] *= SHARP_ABUNDANCE
    abundance_t[np.arange(num_types) // 2 % RARE_EVERY == 1] *= RARE_ABUNDANCE
    programme_g = _assign_programmes(mean_g, num_types, rng)
    shares = np.cumsum([platform.share for platform in PLATFORMS])
    return Blueprint(
        types=tuple(types),
        classes_t=classes_t,
        abundance_t=abundance_t,
        mean_tg=_type_means(mean_g, programme_g, classes_t, rng),
        programme_g=programme_g,
        usage_tp=rng.random((num_types, NUM_SHARED)),
        log_efficiency_fg=rng.normal(0, _PLATFORM_SPREAD, (len(PLATFORMS), num_genes)).astype(np.float32),
        platforms=rng.permutation(np.searchsorted(shares, (np.arange(NUM_DATASETS) + 0.5) / NUM_DATASETS)),
        unlabelled_datasets=rng.random(NUM_DATASETS) < _UNLABELLED_DATASETS,
    )


def split_cells(num_cells: int, num_organs: int, rng: np.random.Generator) -> list[int]:
    """How many cells each organ has: unequal, and one at least."""
    share = np.exp(rng.normal(0, _ORGAN_SPREAD, len(ORGANS)))[:num_organs]
    ends = 1 + np.arange(num_organs) + np.floor(np.cumsum(share / share.sum()) * (num_cells - num_organs) + 0.5)
    return [int(number) for number in np.diff(ends, prepend=0)]


def datasets_of(organ: int) -> range:
    """Numbers of the datasets of an organ: three or four."""
    return range(NUM_DATASETS * organ // len(ORGANS), NUM_DATASETS * (organ + 1) // len(ORGANS))


def _assign_programmes(mean_g: NDArray[np.float64], num_types: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Genes of the programmes: none of the few that make most molecules, for one of those would be the programme."""
    num_genes = len(mean_g)
    eligible = rng.permutation(np.argsort(mean_g)[: num_genes - num_genes // 50])
    programme_g = np.full(num_genes, num_types + NUM_STATES + NUM_SHARED, np.int16)
    first = start = 0
    for number, share in ((num_types, _MARKER_GENES), (NUM_STATES, _STATE_GENES), (NUM_SHARED, _SHARED_GENES)):
        stop = start + int(share * num_genes)
        programme_g[eligible[start:stop]] = first + np.arange(stop - start) % number
        first, start = first + number, stop
    return programme_g


def _type_means(
    mean_g: NDArray[np.float64], programme_g: NDArray[np.int16], classes_t: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.float32]:
    """(t, g) molecules of each type: the average cell, changed by class and lineage; programmes at their share."""
    num_genes, num_types = len(mean_g), len(classes_t)
    numbers = (num_types, NUM_STATES, NUM_SHARED)
    share_p = np.repeat((MARKER_SHARE, STATE_SHARE, SHARED_SHARE), numbers) * REFERENCE_COUNTS
    made_p = np.bincount(programme_g, mean_g, len(share_p) + 1)[:-1]
    factor_p = np.append(share_p / np.maximum(made_p, 1e-300), 1.0)
    plain_g = programme_g == len(share_p)
    classes = _sparse_normal((len(CLASSES), num_genes), _CLASS_SPREAD, rng)
    factors = _sparse_normal((NUM_FACTORS, num_genes), NUM_FACTORS**-0.5, rng)
    mean_tg = np.empty((num_types, num_genes), np.float32)
    for first in range(0, num_types, 2):
        shift_g = classes[classes_t[first]] + rng.normal(0, _LINEAGE_SPREAD, NUM_FACTORS) @ factors
        level_p = np.full(len(factor_p), LEAK)
        pair = np.arange(first, first + 2)
        level_p[np.concatenate([pair, num_types + state_of(pair), np.arange(num_types + NUM_STATES, len(level_p))])] = 1
        mean_tg[pair] = mean_g * (factor_p * level_p)[programme_g] * np.exp(np.where(plain_g, shift_g, 0))
    return mean_tg


def _sparse_normal(shape: Sequence[int], spread: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal in a fifth of the places, 0 in the others; the variance over all places is spread**2."""
    return rng.normal(0, spread * 5**0.5, shape) * (rng.random(shape) < 0.2)
