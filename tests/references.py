"""A reference with random weights: what generation promises does not depend on what was learned."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.config import ModelConfig
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.points import Points, one_hot
from unicoord_atlas.reference import ReferenceConfig, ReferenceModel
from unicoord_atlas.schema import AtlasSchema, LabelColumn
from unicoord_atlas.seeds import Seeds
from unicoord_atlas.training.calibration import Calibration

CLASSES = ("B", "NK", "T")
PLATFORMS = ("10x", "Drop-seq")
NUM_GENES = 60


def random_reference(num_seeds: int = 40, clusters: int = 0, old: bool = False) -> ReferenceModel:
    """Two labels, a supervised time (offset 5, scale 2) and three unsupervised dimensions.

    An old one takes no mean profile off cells and has no label path, as references were before.  With clusters also an
    unsupervised discrete dimension of so many classes, which the seeds do not know.
    """
    unsupervised = DiscreteLatent(name="unsupervised_discrete_0", num_categories=clusters, supervised=False)
    latent = LatentSpec(
        discrete=(
            DiscreteLatent(name="cell_type", num_categories=3),
            DiscreteLatent(name="platform", num_categories=2),
            *([unsupervised] if clusters else []),
        ),
        continuous=(
            ContinuousLatent(name="time", offset=5.0, scale=2.0),
            *(ContinuousLatent(name=f"unsupervised_{i}", supervised=False) for i in range(3)),
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = ModelConfig(hidden=(16, 8))
        new = {} if old else {"centered": True, "label_path": (12, 8), "path_labels": (0,)}
        model = JointVAE(NetworkSpec(num_genes=NUM_GENES, latent=latent, model=small, **new))
    model.start_from(torch.full((NUM_GENES,), 0.5), center_g=torch.linspace(0.5, 4, NUM_GENES))
    labels = (
        LabelColumn(name="cell_type", categories=CLASSES, counts=(9, 9, 9), folded={"ILC": 3}),
        LabelColumn(name="platform", categories=PLATFORMS, counts=(9, 9)),
    )
    zeros = np.zeros(NUM_GENES)
    return ReferenceModel(
        model.eval(),
        ReferenceConfig(
            network=model.spec,
            labels=labels,
            technical=("platform",),
            calibration=Calibration(latent_mean=(0.0,) * 4, latent_sd=(1.0,) * 4, temperatures={}),
        ),
        AtlasSchema(gene_key="symbol", genes=tuple(f"G{i}" for i in range(NUM_GENES)), labels=labels),
        Normalization(zeros > 0, zeros + 1 / NUM_GENES, zeros, zeros),
        seeds=_seeds(num_seeds) if num_seeds else None,
    )


def _seeds(num: int) -> Seeds:
    rng = np.random.default_rng(0)
    codes = np.stack([np.arange(num) % 3, np.arange(num) % 2], axis=1).astype(np.int32)
    points = Points(
        np.arange(num),
        (one_hot(codes[:, 0], 3), one_hot(codes[:, 1], 2)),
        rng.normal(size=(num, 4)).astype(np.float32),
        np.full((num, 4), 0.25, np.float32),
        np.full(num, 2000, np.float32),
    )
    values = np.arange(num, dtype=np.float32)[:, None]
    return Seeds.of([points], CellColumns(points.size_factors, np.zeros(num, np.int32), codes, values))


def random_cells(num_cells: int = 30) -> anndata.AnnData:
    """Counts with a time (missing for the first cell), a wanted class (missing for every third) and its own name."""
    rng = np.random.default_rng(1)
    wanted = np.where(np.arange(num_cells) % 3 == 0, None, np.where(np.arange(num_cells) % 3 == 1, "B", "T"))
    time = np.where(np.arange(num_cells) == 0, np.nan, np.arange(num_cells, dtype=float))
    obs = pd.DataFrame({"wanted": wanted, "time": time}, index=[f"cell{i}" for i in range(num_cells)])
    counts = rng.poisson(3.0, (num_cells, NUM_GENES)).astype(np.float32)
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(NUM_GENES)]))
