"""All that is needed to build a JointVAE again."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from unicoord_atlas.config import ModelConfig, Size
from unicoord_atlas.normalization import TARGET_SUM

from .latent import LatentSpec


class NetworkSpec(BaseModel):
    """The model part of a reference's config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_genes: int
    latent: LatentSpec
    model: ModelConfig
    temperature: float = 0.67
    thinning: float = 0.0
    gene_dropout: float = 0.0
    gene_panels: float = 0.0
    decode_labels: bool = False
    target_sum: float = TARGET_SUM
    log_input: bool = False
    num_sources: int = 0
    """Sources whose unmeasured genes are masked; 0 = no mask."""
    num_atlas_genes: int = 0
    """Columns of the counts it is given, if it looks at some of them only; 0 = it takes all."""
    centered: bool = False
    """Whether the encoder looks at differences from a mean profile."""
    label_path: tuple[Size, ...] = ()
    """Widths of the layers that are the labels' own; () = none."""
    path_labels: tuple[int, ...] = ()
    """Numbers of the discrete dimensions whose heads sit behind them."""

    @model_validator(mode="after")
    def _check(self) -> NetworkSpec:
        if not set(self.path_labels) <= set(range(len(self.latent.discrete))):
            raise ValueError(
                f"path_labels {self.path_labels}: there are {len(self.latent.discrete)} discrete dimensions"
            )
        if bool(self.path_labels) != bool(self.label_path):
            raise ValueError("label_path and path_labels: one without the other")
        return self
