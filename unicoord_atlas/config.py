"""RunConfig: every setting of a run, from one TOML file, checked once, frozen.

The defaults are the recipe "default"; `recipe = "paper"` and `"released"` replace the lines that differ
(`recipes.RECIPES`), and whatever the file or `--set` says has the last word.
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError
from .overrides import merged, set_by_name
from .recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic.fields import FieldInfo

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**63)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Which cells and genes are trained on."""

    genes: str = Field("all", description="all | highly_variable | FILE (one gene a line)")
    num_highly_variable: Size = 4000
    max_cells: Count = Field(0, description="0 = all; 50000 = the paper's hECA run: a seeded random sample")
    min_cells: Count = Field(20, description="* classes with fewer labelled training cells are folded into 'other'")
    validation_fraction: Share = Field(0.1, description="by a seeded hash of obs_names; stored in the run")
    validation_by: str = Field("", description="an obs column: whole values (donors) are held out")
    exclude: tuple[str, ...] = Field(
        (), description='cells neither trained on nor validated: ["time=3.5", "organ=lung"]'
    )
    mask_unmeasured: bool = Field(True, description="* a gene that a cell's source did not measure is no zero")


class LatentConfig(_Section):
    """The latent dimensions."""

    discrete: tuple[str, ...] = Field((), description='supervised discrete: ["cell_type", "dataset"]')
    continuous: tuple[str, ...] = Field((), description='supervised continuous: obs columns and/or "obsm:X_gene_sets"')
    technical: tuple[str, ...] = Field(
        ("dataset", "platform", "seq_tech", "batch", "donor", "source"),
        description="nuisance: never part of an embedding for plots and neighbours",
    )
    hierarchy: tuple[str, ...] = Field(
        (),
        description='["cell_class > cell_type"]; or a tree, ["FILE"], ["FILE: cell_type"], '
        '["FILE: cell_class > cell_type"]: a CSV with father,child or the Cell Ontology',
    )
    hierarchy_levels: Size = Field(2, description="of a tree and one column: so many coarser levels are made")
    conditional: bool = Field(True, description="* of tied labels: a finer one's head tells siblings apart")
    unsupervised_continuous: Count = 50
    diffusion: Count = Field(0, description="the first so many unsupervised continuous ones")
    unsupervised_discrete: tuple[Size, ...] = Field((), description="their numbers of categories")
    temperature: Annotated[float, Field(gt=0)] = 0.67
    decode_labels: bool = Field(
        False, description="* while training the decoder gets known labels; false: what the encoder says of them"
    )
    standardize: bool = Field(
        True, description="* continuous labels are learned standardized; values come back in their units"
    )
    calibrate: bool = Field(True, description="* their scale is fitted to validation cells at the end")


class LossConfig(_Section):
    """Weights of the loss terms."""

    reconstruction: Weight = 1.0
    beta: Weight = Field(0.1, description='* paper: not stated; "released": a capacity schedule')
    beta_warmup_steps: Count = Field(500, description="*")
    capacity_nats: Weight = Field(0.0, description="0 = off; released: beta |C(t) - KL|, C from 0 to this")
    capacity_steps: Size = 25_000
    regression: Weight = 100.0
    classification: Weight = Field(300.0, description="* paper: not stated; its code: 100")
    hierarchical: Weight = 10.0
    diffusion: Weight = Field(1.0, description="if there are diffusion dimensions; needs build-graph")
    diffusion_on: Literal["diffusion", "unsupervised"] = Field(
        "diffusion", description="diffusion: the latent.diffusion ones; unsupervised: all unsupervised continuous ones"
    )
    diffusion_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="share of a minibatch's cells that carry the term"
    )
    diffusion_live: Size = Field(4, description="neighbours of each that are encoded with gradient, others remembered")
    clustering: Weight = 0.0
    independence: Weight = Field(100.0, description="* unsupervised dimensions do not tell independent_of in a type")
    independence_warmup_steps: Count = Field(200, description="* classes come first, mixing after")
    independent_of: tuple[str, ...] = Field((), description="labels; empty: the technical ones of latent.discrete")
    class_weights: Literal["none", "sqrt", "balanced"] = Field("none", description="none | sqrt | balanced")
    per_gene: bool = Field(False, description="released: the total is divided by the number of genes")


class AugmentConfig(_Section):
    """Changes to the encoder's input while training."""

    thinning: Share = Field(
        0.75,
        description="* keep probability ~ U(1 - thinning, 1) per cell on the encoder's raw counts; target unthinned",
    )
    gene_dropout: Share = Field(
        0.5,
        description="* share of a cell's genes hidden from the encoder, others scaled up: no gene decides alone",
    )
    gene_panels: Share = Field(
        0.5, description="* share of cells of which the encoder sees only the genes that another source measured, too"
    )


class ModelConfig(_Section):
    """Sizes of the network."""

    hidden: Annotated[tuple[Size, ...], Field(min_length=1)] = Field(
        (512, 256, 128), description="the decoder mirrors it"
    )
    label_path: tuple[Size, ...] = Field(
        (),
        description="[128, 128, 128]: layers of their own for labels that are not technical; []: heads on the encoder",
    )
    dropout: Share = 0.1
    encoder_min_cells: Count = Field(
        20, description="* the encoder looks at genes detected in so many of up to 20,000 training cells"
    )
    center_input: bool = Field(
        True, description="* the encoder looks at differences from the training cells' mean profile"
    )
    output_bias: Literal["mean", "default"] = Field("mean", description="* starts at the training cells' mean profile")
    relu_gradient: Literal["y_or_x", "y"] = Field(
        "y_or_x", description='* behind the last ReLU the gradient passes where y > 0 or x > 0; "y": the paper'
    )


class TrainConfig(_Section):
    """The optimizer and its schedule."""

    seed: Count = 0
    epochs: Size | Literal["auto"] = Field("auto", description="auto = clamp(round(200000 / cells), 1, 100)")
    batch_size: Size = Field(256, description="cells a step over all processes, at most; batches are cut evenly")
    accumulate_steps: Size = Field(1, description="a process takes its share of a batch in so many parts: less memory")
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    learning_rate_rule: Literal["sqrt", "constant"] = Field(
        "sqrt", description="* sqrt: learning_rate is for 256 cells, times sqrt(batch_size / 256)"
    )
    warmup_steps: Count = Field(200, description="* at most a tenth of the run")
    clip_norm: Weight = Field(0.0, description="0 = off; gradients are sums over genes, their norms 50 to 200")
    gradient_compression: Literal["none", "bf16"] = Field("none", description="between GPUs")
    average: bool = Field(True, description="* validate and export a running average of the later weights")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto = bf16 where the hardware multiplies it faster"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    early_stopping_patience: Count = Field(10, description="* epochs without a better validation loss; 0 = off")
    checkpoint_every_steps: Size = 500
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] = 2.0
    trackers: tuple[str, ...] = Field(("tensorboard",), description='beside metrics.jsonl: ["wandb"], ["mlflow"], ...')


class StreamConfig(_Section):
    """How cells come from disk."""

    window_cells: Size = Field(20_000, description="cells shuffled together in memory: the paper's chunk_size")
    memory: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(KiB|MiB|GiB)$")] = Field(
        "1GiB", description="window and read-ahead fit in it"
    )
    balance: str = Field(
        "",
        description="a label of latent.discrete, its rare classes folded, or an obs column: training draws its classes "
        "alike, and leaves out cells that have none",
    )
    balance_temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="1 = each class equally often; 0 = as often as it has cells"
    )

    @property
    def memory_bytes(self) -> int:
        """The memory budget in bytes."""
        return round(float(self.memory[:-3]) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[self.memory[-3:]])


Recipe = Literal["default", "paper", "released"]
_NOTE = "# What is set here wins over the recipe.  All settings of another one: unicoord-atlas config --recipe NAME"


class RunConfig(_Section):
    """Every setting of a run."""

    recipe: Recipe = Field(
        "default",
        description='"paper": its formula and settings, nothing else; "default": the paper + the lines marked *; '
        '"released": its code\'s schedule and weights',
    )
    data: DataConfig = DataConfig()
    latent: LatentConfig = LatentConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    stream: StreamConfig = StreamConfig()

    @property
    def num_diffusion(self) -> int:
        """Dimensions that the diffusion loss is taken on; 0 where it is off."""
        if self.loss.diffusion_on == "unsupervised" and self.loss.diffusion > 0:
            return self.latent.unsupervised_continuous
        return self.latent.diffusion

    @property
    def needs_graph(self) -> bool:
        """Whether the diffusion loss is on."""
        return self.loss.diffusion > 0 and self.num_diffusion > 0

    @classmethod
    def load(cls, path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
        """Read a TOML file (or none) and apply ``a.b=c`` overrides, their values TOML; ConfigError names the key."""
        given: dict[str, Any] = {}
        if path is not None:
            try:
                given = tomllib.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError as error:
                raise ConfigError(
                    f"{path}: no such file; `unicoord-atlas config --default` prints one to start from"
                ) from error
            except (OSError, ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
                raise ConfigError(f"{path}: not a readable TOML file ({error})") from error
        for override in overrides:
            set_by_name(given, override)
        return cls.of(given, where=str(path) if path else "--set")

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str = "config") -> RunConfig:
        """Settings from nested mappings: the recipe's lines first, the given ones over them."""
        recipe = given.get("recipe", "default")
        settings = merged(RECIPES.get(recipe, {}) if isinstance(recipe, str) else {}, given)
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(_explain(error, where)) from error

    def to_toml(self, comments: bool = False) -> str:
        """The settings as TOML text, with a comment a line if asked for."""
        lines = [_NOTE] if comments else []
        lines.append(_line("recipe", self.recipe, type(self).model_fields["recipe"], comments))
        for name in type(self).model_fields:
            section = getattr(self, name)
            if isinstance(section, BaseModel):
                lines += ["", f"[{name}]"]
                fields = type(section).model_fields
                lines += [_line(key, getattr(section, key), fields[key], comments) for key in fields]
        return "\n".join(lines) + "\n"


def _explain(error: ValidationError, where: str) -> str:
    """One line: the key's path, the value got, what is allowed."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]][:2]  # a section and its key; deeper parts are the library's own
    if first["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        return f"{where}: unknown setting {'.'.join(path)!r}; it can be one of: {', '.join(section.model_fields)}"
    annotation = RunConfig.model_fields.get(path[0])
    kind = annotation.annotation if annotation else None
    field = (
        kind.model_fields.get(path[1])
        if len(path) > 1 and isinstance(kind, type) and issubclass(kind, BaseModel)
        else None
    )
    allowed = _allowed(field)
    return f"{where}: {'.'.join(path)} = {first['input']!r}: {first['msg']}{f' ({allowed})' if allowed else ''}"


def _allowed(field: FieldInfo | None) -> str:
    if field is None:
        return ""
    literals = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
    return f"allowed: {' | '.join(literals)}" if literals else (field.description or "")


def _line(key: str, value: Any, field: FieldInfo, comments: bool) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    line = f"{key} = {json.dumps(plain, ensure_ascii=False)}"
    return f"{line:<39} # {field.description}" if comments and field.description else line
