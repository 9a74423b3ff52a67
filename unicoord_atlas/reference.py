"""ReferenceModel: a trained coordinate system in a directory that can be shared.

    model.safetensors           weights and buffers
    config.json                 network, labels, technical names, calibration, metrics, versions
    schema.json                 genes of the atlas and what each source measured
    normalization.safetensors   the atlas's frozen normalization
    novelty.safetensors         reference cells, and how strange validation cells are (since version 4, if there were)
    seeds.safetensors           where training cells are, to generate others like them; may be left out
    README.md                   model card

Shapes: n cells, g genes, d dimensions, k categories, b columns of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file

from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.training.calibration import Calibration
from unicoord_atlas.training.checkpoint import load_weights

from .calls import CallRule, ParentShares
from .cell_facts import cell_facts
from .encode import Encoded, FrozenEncoder, softmax
from .lineage import Tie
from .model_card import model_card
from .novelty import Novelty, strangeness
from .query import MIN_COVERAGE
from .reference_files import (
    load_normalization,
    read_checked,
    read_text,
    require_fit,
    require_sound,
    room_for,
    save_normalization,
)
from .schema import AtlasSchema, LabelColumn
from .seeds import SEEDS, Seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import anndata
    from numpy.typing import NDArray
    from torch import Tensor

    from .batch import MiniBatch, SparseRows
    from .generate import Generation
    from .normalization import Normalization

NOVELTY = "novelty.safetensors"
FORMAT_VERSION = 6
"""1 knew no parents; novelty is read since 4; before 5 no mean profile was taken off; 6 has label paths."""


class ReferenceConfig(BaseModel):
    """config.json of a reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int = FORMAT_VERSION
    network: NetworkSpec
    labels: tuple[LabelColumn, ...]
    """Of the supervised discrete dimensions, as trained."""
    technical: tuple[str, ...] = ()
    parent_shares: tuple[ParentShares, ...] = ()
    """Which label refines which."""
    tables: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Continuous dimensions that were supervised by an obsm table, by its key: mapped cells get one of that name."""
    calibration: Calibration
    metrics: dict[str, float] = Field(default_factory=dict)
    atlas: dict[str, Any] = Field(default_factory=dict)
    """What it was trained on: number of cells, sources, the run's settings."""

    @property
    def ties(self) -> tuple[Tie, ...]:
        """Which categories may stand below which."""
        return tuple(Tie.of(tree.parent, tree.child, tree.shares) for tree in self.parent_shares)


@dataclass(frozen=True)
class Annotation:
    """What the reference says of the cells of one minibatch."""

    encoded: Encoded
    bio: NDArray[np.float32]
    """(n, b) for plots, neighbours and novelty."""
    probabilities: dict[str, NDArray[np.float32]]
    """(n, k) calibrated probabilities of each label."""
    novelty: NDArray[np.float32] | None = None
    """(n,) higher = stranger; None if it was not asked for or the reference does not know."""
    novelty_p: NDArray[np.float32] | None = None
    """(n,) conformal p-value."""

    def predicted(self, name: str) -> NDArray[np.intp]:
        """(n,) code of the arg-max class."""
        return np.asarray(self.probabilities[name].argmax(axis=1))


class ReferenceModel:
    """A trained model with all that is needed to map cells onto it."""

    def __init__(
        self,
        model: JointVAE,
        config: ReferenceConfig,
        schema: AtlasSchema,
        normalization: Normalization,
        novelty: Novelty | None = None,
        seeds: Seeds | None = None,
    ) -> None:
        self.model, self.config, self.schema, self.normalization = model, config, schema, normalization
        self.novelty, self.seeds = novelty, seeds

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> ReferenceModel:
        """Read a reference directory; DataError names the file that is missing, damaged or of a newer version."""
        folder = Path(folder)
        config = read_checked(folder / "config.json", ReferenceConfig, FORMAT_VERSION)
        schema = AtlasSchema.from_json(read_text(folder / "schema.json"), str(folder / "schema.json"))
        require_sound(folder, config.network)
        model = JointVAE(config.network)
        load_weights(folder / "model.safetensors", model, torch.device("cpu"))
        has_novelty = config.format_version >= 4 and (folder / NOVELTY).exists()
        novelty = Novelty.load(folder / NOVELTY) if has_novelty else None
        normalization = load_normalization(folder / "normalization.safetensors")
        seeds = Seeds.load(folder / SEEDS) if (folder / SEEDS).exists() else None
        require_fit(folder, config, schema, normalization)
        return cls(model.to(device).eval(), config, schema, normalization, novelty, seeds)

    def save(self, folder: Path | str) -> None:
        """Write all files into a directory, which gets its name last if it is new; DataError if it has a model."""
        with room_for(Path(folder), "config.json") as place:
            self._write(place)

    def _write(self, folder: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(self.config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "schema.json").write_text(self.schema.to_json() + "\n", encoding="utf-8")
        save_normalization(folder / "normalization.safetensors", self.normalization)
        if self.seeds is not None:
            self.seeds.save(folder / SEEDS)
        (folder / "README.md").write_text(model_card(self), encoding="utf-8")
        if self.novelty is not None:
            self.novelty.save(folder / NOVELTY)
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors makes them private, and this is to be shared

    @cached_property
    def encoder(self) -> FrozenEncoder:
        """The encoder as it is now: later changes of its weights are not seen."""
        return FrozenEncoder(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.output_layer.weight.device

    def label(self, name: str) -> LabelColumn:
        """The label of this name as trained."""
        return self.schema.model_copy(update={"labels": self.config.labels}).label(name)

    @property
    def own_genes(self) -> tuple[str, ...]:
        """Genes that the model decodes, in its order."""
        return tuple(self.schema.genes[i] for i in self.own_positions)

    @property
    def own_positions(self) -> NDArray[np.int64]:
        """Where these genes are among the atlas's."""
        own_g = self.model.own_index_g.cpu().numpy() >= 0  # empty where all genes are the model's
        return np.flatnonzero(own_g) if len(own_g) else np.arange(self.schema.num_genes)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the columns of X_unicoord: supervised continuous, then unsupervised."""
        return tuple(latent.name for latent in self.config.network.latent.continuous)

    def annotate(
        self, batches: Iterable[MiniBatch], measured_g: NDArray[np.bool_] | None = None, novelty: bool = False
    ) -> Iterator[Annotation]:
        """Coordinates, calibrated label probabilities and the biological representation, minibatch by minibatch.

        Parameters
        ----------
        measured_g
            Which genes of the atlas the cells' source measured, if not all: less coverage, less confidence.
        novelty
            Also novelty and its p-value, if the reference knows them.
        """
        coverage = 1.0 if measured_g is None else self.normalization.profile_share(measured_g)
        for batch in batches:
            share = None if measured_g is None else self.normalization.shares_of(batch)
            annotation, rows, size_factors_n = self.annotate_batch(batch, coverage if share is None else share)
            if novelty and self.novelty is not None:
                known = (annotation.encoded, annotation.bio, size_factors_n, measured_g)
                parts = strangeness(self.novelty, cell_facts(self.model, self.novelty, rows, *known))
                scores = self.novelty.scores(parts)
                p_values = self.novelty.p_values(scores, parts.log_depth, coverage)
                annotation = replace(annotation, novelty=scores, novelty_p=p_values)
            yield annotation

    def annotate_batch(
        self, batch: MiniBatch, coverage: float | NDArray[np.float64] = 1.0
    ) -> tuple[Annotation, SparseRows, Tensor]:
        """Annotation of one minibatch without novelty, its log-normalized cells and their size factors."""
        on_device = batch.to(self.device)
        rows = self.model.normalized(on_device)
        encoded = self.encoder.encode(on_device, rows)
        calibration = self.config.calibration
        probabilities = {
            label.name: softmax(encoded.logits[number] / calibration.temperature(label.name, coverage))
            for number, label in enumerate(self.config.labels)
        }
        return Annotation(encoded, self.bio(encoded, probabilities), probabilities), rows, on_device.size_factors_n

    def map(
        self,
        adata: anndata.AnnData,
        layer: str | None = None,
        probabilities: bool = False,
        rule: CallRule | None = None,
        consistent: bool = False,
        min_coverage: float = MIN_COVERAGE,
    ) -> anndata.AnnData:
        """A new AnnData without X: coordinates and labels of the cells of another, see `coordinates.coordinates`.

        Parameters
        ----------
        adata
            Cells with raw counts, or what else the reference was learned from; genes are found by symbol or Ensembl id.
        probabilities
            Also the probability of every class, as obsm["X_unicoord_<label>"].
        rule
            When a prediction becomes a call; the default rule if None.
        consistent
            Labels of tied levels are decoded together, so that each lies below its parent, if that has children.
        min_coverage
            Share of the reference's mean profile that the cells' genes must carry: DataError if it is less.
        """
        from .mapped import map_anndata  # late: anndata takes a second

        return map_anndata(self, adata, layer, probabilities, rule, consistent, min_coverage)

    def generate(
        self,
        adata: anndata.AnnData | None = None,
        how: Generation | None = None,
        *,
        like: Mapping[str, str] | None = None,
        num: int = 1,
        layer: str | None = None,
        between: tuple[str, str] | None = None,
        steps: int = 11,
        min_coverage: float = MIN_COVERAGE,
    ) -> anndata.AnnData:
        """Generate cells: those of an AnnData with some coordinates changed, some between two of them, or new ones.

        Parameters
        ----------
        adata
            Cells with raw counts (or what else the reference learned from) in X or in a layer, to start from.
        how
            What is changed and how cells are drawn: ``Generation(Changes(labels={"cell_type": "B"}))``.
        like, num
            Without `adata`: so many cells with these labels, from the reference's seeds.
        between, steps
            So many cells on the way from one cell of `adata` to another, by their names, ends included; `how` may set
            other coordinates of theirs.
        min_coverage
            As of `map`.

        Returns
        -------
        A new AnnData: see `generated.generate_anndata`.
        """
        from .generated import generate_anndata  # late: it needs this module

        return generate_anndata(self, adata, how, like or {}, num, layer, between, steps, min_coverage)

    def bio(self, encoded: Encoded, probabilities: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """(n, b): standardized continuous dimensions and roots of label probabilities, but for technical ones."""
        technical, calibration = set(self.config.technical), self.config.calibration
        kept = np.array([name not in technical for name in self.dims], np.bool_)
        standardized = encoded.mean - np.array(calibration.latent_mean, np.float32)
        standardized /= np.maximum(np.array(calibration.latent_sd, np.float32), 1e-6)
        roots = [np.sqrt(values) for name, values in probabilities.items() if name not in technical]
        return np.concatenate([standardized[:, kept], *roots], axis=1, dtype=np.float32)
