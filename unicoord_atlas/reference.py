"""ReferenceModel: a trained coordinate system in a directory that can be shared.

    model.safetensors           weights and buffers
    config.json                 network, labels, technical names, calibration, metrics, versions
    schema.json                 genes of the atlas and what each source measured
    normalization.safetensors   the atlas's frozen normalization
    README.md                   model card

Shapes: n cells, g genes, d continuous dimensions, k categories.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from unicoord_atlas.model.joint_vae import JointVAE, NetworkSpec
from unicoord_atlas.training.calibration import Calibration
from unicoord_atlas.training.checkpoint import load_weights

from .encode import Encoded, encode_batches, softmax
from .errors import DataError
from .model_card import model_card
from .normalization import Normalization
from .schema import AtlasSchema, LabelColumn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import anndata
    from numpy.typing import NDArray

    from .batch import MiniBatch

FORMAT_VERSION = 1
Model = TypeVar("Model", bound=BaseModel)


class ReferenceConfig(BaseModel):
    """config.json of a reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: int = FORMAT_VERSION
    network: NetworkSpec
    labels: tuple[LabelColumn, ...]
    """Of the supervised discrete dimensions, as trained."""
    technical: tuple[str, ...] = ()
    calibration: Calibration
    metrics: dict[str, float] = Field(default_factory=dict)
    atlas: dict[str, Any] = Field(default_factory=dict)
    """What it was trained on: number of cells, sources, the run's settings."""


@dataclass(frozen=True)
class Annotation:
    """What the reference says of the cells of one minibatch."""

    encoded: Encoded
    bio: NDArray[np.float32]
    """(n, b) the representation for plots, neighbours and novelty: see `ReferenceModel.bio`."""
    probabilities: dict[str, NDArray[np.float32]]
    """(n, k) calibrated probabilities of each label."""

    def predicted(self, name: str) -> NDArray[np.intp]:
        """(n,) code of the arg-max class."""
        result: NDArray[np.intp] = self.probabilities[name].argmax(axis=1)
        return result


class ReferenceModel:
    """A trained model with all that is needed to map cells onto it."""

    def __init__(
        self, model: JointVAE, config: ReferenceConfig, schema: AtlasSchema, normalization: Normalization
    ) -> None:
        self.model, self.config, self.schema, self.normalization = model, config, schema, normalization

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> ReferenceModel:
        """Read a reference directory; DataError names the file that is missing, damaged or of a newer version."""
        folder = Path(folder)
        config = read_model(folder / "config.json", ReferenceConfig)
        if config.format_version > FORMAT_VERSION:
            raise DataError(
                f"{folder}: reference of version {config.format_version}, this program reads up to {FORMAT_VERSION}; "
                "update unicoord-atlas"
            )
        schema = AtlasSchema.from_json(_text(folder / "schema.json"), str(folder / "schema.json"))
        model = JointVAE(config.network)
        load_weights(folder, model, torch.device("cpu"))
        return cls(model.to(device).eval(), config, schema, load_normalization(folder / "normalization.safetensors"))

    def save(self, folder: Path) -> None:
        """Write all files into an existing directory."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_torch_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(self.config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "schema.json").write_text(self.schema.to_json() + "\n", encoding="utf-8")
        save_normalization(folder / "normalization.safetensors", self.normalization)
        (folder / "README.md").write_text(model_card(self), encoding="utf-8")
        for name in ("model.safetensors", "normalization.safetensors"):
            (folder / name).chmod(0o644)  # safetensors makes them private, and this is to be shared

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
        if not self.config.network.num_atlas_genes:
            return self.schema.genes
        own = np.flatnonzero(self.model.own_index_g.cpu().numpy() >= 0)
        return tuple(self.schema.genes[i] for i in own)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the columns of X_unicoord: supervised continuous, then unsupervised."""
        return tuple(latent.name for latent in self.config.network.latent.continuous)

    def annotate(self, batches: Iterable[MiniBatch]) -> Iterator[Annotation]:
        """Coordinates, calibrated label probabilities and the biological representation, minibatch by minibatch."""
        temperatures = self.config.calibration.temperatures
        for encoded in encode_batches(self.model, batches, self.device):
            probabilities = {
                label.name: softmax(encoded.logits[number] / np.float32(temperatures.get(label.name, 1.0)))
                for number, label in enumerate(self.config.labels)
            }
            yield Annotation(encoded, self.bio(encoded, probabilities), probabilities)

    def map(self, adata: anndata.AnnData, layer: str | None = None, probabilities: bool = False) -> anndata.AnnData:
        """Give the cells of an AnnData coordinates and labels.

        Parameters
        ----------
        adata
            Cells with raw counts in X or in a layer; genes are found by symbol or Ensembl id.
        probabilities
            Also the probability of every class, as obsm["X_unicoord_<label>"].

        Returns
        -------
        A new AnnData without X: see `coordinates.coordinates`.
        """
        from .coordinates import coordinates
        from .memory import AnnDataCells
        from .query import QueryBatches

        batches = QueryBatches(AnnDataCells(adata, layer), self.schema, self.normalization)
        return coordinates(self, batches, adata.obs, probabilities, "map")

    def bio(self, encoded: Encoded, probabilities: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """(n, b): standardized continuous dimensions and roots of label probabilities, but for technical ones."""
        technical, calibration = set(self.config.technical), self.config.calibration
        kept = np.array([name not in technical for name in self.dims], np.bool_)
        spread = np.maximum(np.array(calibration.latent_sd, np.float32), 1e-6)
        standardized = (encoded.mean - np.array(calibration.latent_mean, np.float32)) / spread
        roots = [np.sqrt(values) for name, values in probabilities.items() if name not in technical]
        return np.concatenate([standardized[:, kept], *roots], axis=1, dtype=np.float32)


def save_normalization(path: Path, normalization: Normalization) -> None:
    """Write the arrays with the scalars as metadata."""
    arrays, scalars = {}, {}
    for field in fields(Normalization):
        value = getattr(normalization, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = np.ascontiguousarray(value)
        else:
            scalars[field.name] = repr(value)
    save_file(arrays, path, metadata=scalars)


def load_normalization(path: Path) -> Normalization:
    """Read what `save_normalization` wrote; DataError names the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            scalars = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        return Normalization(
            **arrays,
            target_sum=float(scalars["target_sum"]),
            max_fraction=float(scalars["max_fraction"]),
            min_cells=int(scalars["min_cells"]),
            log_input=scalars["log_input"] == "True",
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a normalization ({error})") from error


def read_model(path: Path, kind: type[Model]) -> Model:
    """Read a JSON file as a pydantic model; DataError names the file and the first fault."""
    try:
        return kind.model_validate_json(_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; the file is damaged or of another version"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is this a reference directory? export-reference makes one of a run"
        ) from error
