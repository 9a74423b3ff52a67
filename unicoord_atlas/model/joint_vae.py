"""JointVAE: encoder, posterior, decoder.  Source: the paper, Methods, "Model structure".

Shapes: n cells, g genes, h hidden units, d continuous dimensions, k categories.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unicoord_atlas.log_normalize import log_normalize
from unicoord_atlas.losses.diffusion import diffused, neighbor_average

from .augment import left_over
from .center import Center, distinct
from .fused_decode import DecodeOptions, Target, fused_decode_error, partly_measured
from .gene_order import GeneOrder, tile_size
from .label_path import LabelPath
from .latent import Posterior, with_labels
from .noise import Dropout, EntryNoise, Noise, Purpose, below
from .refinement import GivenParents
from .sparse_input import SparseLinear

if TYPE_CHECKING:
    from unicoord_atlas.batch import MiniBatch, Neighborhood, SparseRows

    from .network_spec import NetworkSpec


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a training or validation step says: the losses are made of these and the batch's labels."""

    rows: SparseRows
    """The log-normalized cells, of the model's genes."""
    posterior: Posterior
    errors_n: Tensor
    """(n,) squared error of each decoded cell, without gradient."""
    mean_error: Tensor
    """Scalar: weighted mean of the errors, with gradient."""
    diffusion_error: Tensor | None = None
    """Scalar, with gradient: mean squared error of the cells decoded from where their neighbours are."""


class JointVAE(nn.Module):
    """Joint variational autoencoder over discrete and continuous latent dimensions."""

    measured_sg: Tensor
    own_index_g: Tensor
    heard_g: Tensor
    center_g: Tensor | None
    units_2c: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        hidden, latent = spec.model.hidden, spec.latent
        self.input_layer = SparseLinear(spec.num_genes, hidden[0] + sum(spec.label_path[:1]))
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.mean = nn.Linear(hidden[-1], latent.num_continuous)
        self.logvar = nn.Linear(hidden[-1], latent.num_continuous)
        self.logits = nn.ModuleList(nn.Linear(hidden[-1], each.num_categories) for each in latent.discrete)
        of_path = {each: latent.discrete[each].num_categories for each in spec.path_labels}
        self.label_path = LabelPath(spec.label_path, of_path) if of_path else None
        self.refinements = nn.ModuleList(GivenParents(each) for each in latent.refinements)
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((latent.width, *reversed(hidden))))
        self.output_layer = nn.Linear(hidden[0], spec.num_genes)
        self.register_buffer("measured_sg", torch.ones((spec.num_sources, spec.num_genes), dtype=torch.bool))
        self.register_buffer("own_index_g", torch.arange(spec.num_atlas_genes))
        self.register_buffer("heard_g", torch.ones(spec.num_genes))
        self.register_buffer("center_g", torch.zeros(spec.num_genes) if spec.centered else None)
        units = [(each.offset, each.scale) for each in latent.continuous if each.supervised]
        self.register_buffer("units_2c", torch.tensor(units).reshape(-1, 2).t(), persistent=False)
        self._panels: tuple[Tensor, Tensor] | None = None
        self.compute_dtype = torch.float32
        """Of the matrix products over genes; weights stay float32."""
        self._partly_measured: dict[int, tuple[bool, ...]] = {}

    def start_from(
        self,
        mean_profile_g: Tensor | None = None,
        measured_sg: Tensor | None = None,
        own_genes: Tensor | None = None,
        heard_g: Tensor | None = None,
        center_g: Tensor | None = None,
    ) -> None:
        """Set what the training data says before training.

        Parameters
        ----------
        mean_profile_g
            Mean profile of the training cells over the model's genes: the output bias.
        measured_sg
            What each source measured of the model's genes.
        own_genes
            Ascending indices of the atlas genes that are the model's.
        heard_g
            Which of the model's genes the encoder looks at.
        center_g
            What the encoder takes off each cell's values of the model's genes.
        """
        if mean_profile_g is not None:
            with torch.no_grad():
                self.output_layer.bias.copy_(mean_profile_g)
        if measured_sg is not None:
            self.measured_sg.copy_(measured_sg)
        if own_genes is not None:
            self.own_index_g.fill_(-1)
            self.own_index_g[own_genes] = torch.arange(len(own_genes))
        if heard_g is not None:
            self.heard_g.copy_(heard_g)
        if center_g is not None and self.center_g is not None:
            self.center_g.copy_(center_g * self.heard_g)

    def own_counts(self, batch: MiniBatch) -> SparseRows:
        """Counts of the genes that the model looks at."""
        return batch.counts.select(self.own_index_g, self.spec.num_genes) if self.spec.num_atlas_genes else batch.counts

    def normalized(self, batch: MiniBatch, counts: SparseRows | None = None) -> SparseRows:
        """Log-normalized cells; `counts` are its `own_counts`, if they are at hand."""
        counts = self.own_counts(batch) if counts is None else counts
        return log_normalize(counts, batch.size_factors_n, self.spec.target_sum, self.spec.log_input)

    def augmented(self, batch: MiniBatch, noise: Noise, counts: SparseRows | None = None) -> SparseRows:
        """Log-normalized cells as another experiment might have seen them: fewer molecules, fewer genes.

        The size factor is thinned by the share of molecules kept, so that count / size factor stays as it was on
        average; likewise values are scaled up by the share of genes kept.
        """
        if not (self.spec.thinning > 0 or self.spec.gene_dropout > 0 or self._has_panels):
            return self.normalized(batch, counts)
        counts, size_factors_n = self.own_counts(batch) if counts is None else counts, batch.size_factors_n
        entries = EntryNoise(noise, counts.row_of_entry(), counts.indices.to(torch.int32))
        thinned_z, hidden_z = entries.draws(Purpose.THINNING)
        seen_z, keep_n = self._seen(entries, hidden_z), None
        if self.spec.thinning > 0:
            keep_n = 1 - self.spec.thinning * noise.uniform(Purpose.THINNING_SHARE, 1)[:, 0]
            size_factors_n = size_factors_n * keep_n
        counts = left_over(counts, seen_z, keep_n, thinned_z, entries, gathered=seen_z.device.type == "cpu")
        rows = log_normalize(counts, size_factors_n, self.spec.target_sum, self.spec.log_input)
        return replace(rows, data=rows.data / (1 - self.spec.gene_dropout))

    @property
    def _has_panels(self) -> bool:
        return self.spec.gene_panels > 0 and self.spec.num_sources > 1

    def _shown(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """(n,) bool: cells that are shown as another source saw them; (g,) bool: what that measured, one a step."""
        one = replace(noise, rows_n=noise.rows_n.new_zeros(1)).uniform(Purpose.PANEL_OF_STEP, 1)[0]
        other_g = self.measured_sg.index_select(0, (one * self.spec.num_sources).to(torch.int64))[0]
        return noise.uniform(Purpose.PANEL, 1)[:, 0] < self.spec.gene_panels, other_g

    def _seen(self, entries: EntryNoise, draws_z: Tensor) -> Tensor:
        """(z,) bool: entries that neither gene dropout nor another source's gene panel hides."""
        seen_z = self.heard_g.index_select(0, entries.genes_z) > 0
        if self.spec.gene_dropout > 0:
            seen_z &= ~below(draws_z, self.spec.gene_dropout)
        if self._has_panels:
            shown_n, other_g = self._shown(entries.noise)
            hidden_z = shown_n.index_select(0, entries.row_of_entry_z)
            seen_z &= ~hidden_z | other_g.index_select(0, entries.genes_z)
        return seen_z

    def center(self, batch: MiniBatch, noise: Noise | None = None) -> Center | None:
        """What the encoder takes off these cells; with noise, of those `augmented`."""
        if self.center_g is None:
            return None
        if batch.measured_sg is not None:
            own_sg = batch.measured_sg[:, self.own_index_g >= 0] if self.spec.num_atlas_genes else batch.measured_sg
            return Center.of(self.center_g, own_sg, batch.sources_n)
        if not self.spec.num_sources:
            return Center(self.center_g[None])
        if self._panels is None or self._panels[0].device != self.measured_sg.device:
            self._panels = distinct(self.measured_sg)
        panels_pg, panel_of_source_s = self._panels
        panel_n = panel_of_source_s.index_select(0, batch.sources_n)
        if noise is not None and self._has_panels:
            shown_n, other_g = self._shown(noise)
            panel_n, panels_pg = panel_n + len(panels_pg) * shown_n, torch.cat([panels_pg, panels_pg & other_g])
        return Center.of(self.center_g, panels_pg, panel_n)

    def encode(
        self,
        rows: SparseRows,
        center: Center | None,
        order: GeneOrder | None = None,
        noise: Noise | None = None,
    ) -> Posterior:
        """Posterior of log-normalized cells, less their `center`; with noise there is dropout."""
        rows = replace(rows, data=rows.data * self.heard_g.index_select(0, rows.indices))
        return self.posterior_of(self.input_layer(rows, order, self.compute_dtype, center), noise)

    def posterior_of(self, first_nh: Tensor, noise: Noise | None = None) -> Posterior:
        """Posterior of cells of which the first layer's sums are known."""
        dropout = Dropout(self.spec.model.dropout, noise)
        own_nh, path_nt = first_nh.tensor_split([self.spec.model.hidden[0]], dim=1)
        hidden_nh = torch.relu(own_nh)
        for number, layer in enumerate(self.encoder):
            hidden_nh = dropout(hidden_nh, number) if number < 2 else hidden_nh
            hidden_nh = torch.relu(layer(hidden_nh))
        logits = [head(hidden_nh) for head in self.logits]
        helpers = tuple((each, logits[each]) for each in self.spec.path_labels if noise is not None)
        if self.label_path is not None:
            for each, found_nk in self.label_path(path_nt, dropout).items():
                logits[each] = found_nk
        for tie, given_parents in zip(self.spec.latent.refinements, self.refinements, strict=True):
            logits[tie.child] = given_parents(logits[tie.child], logits[tie.parent])
        return Posterior(self.mean(hidden_nh), self.logvar(hidden_nh), tuple(logits), helpers)

    def decode_hidden(self, latent_nw: Tensor, noise: Noise | None = None) -> Tensor:
        """(n, h): the decoder up to its last hidden layer; with noise there is dropout after the second and third."""
        hidden_nh, dropout = latent_nw, Dropout(self.spec.model.dropout, noise)
        for number, layer in enumerate(self.decoder):
            hidden_nh = torch.relu(layer(hidden_nh))
            hidden_nh = dropout(hidden_nh, 8 + number) if number in (1, 2) else hidden_nh
        return hidden_nh

    def decode(self, latent_nw: Tensor) -> Tensor:
        """(n, g) log-normalized cells of decoder inputs (n, width); deterministic."""
        return torch.relu(self.output_layer(self.decode_hidden(latent_nw)))

    def reconstruction_error(
        self, latent_nw: Tensor, target: Target, weights_n: Tensor, noise: Noise | None
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum of squared errors, and the errors (n,); never holds an (n, g) tensor."""
        tile = tile_size(latent_nw.device, latent_nw.shape[0])
        options = DecodeOptions(self.compute_dtype, self.spec.model.relu_gradient, tile)
        hidden_nh = self.decode_hidden(latent_nw, noise)
        return fused_decode_error(
            hidden_nh, self.output_layer.weight, self.output_layer.bias, weights_n, target, options
        )

    def target(self, batch: MiniBatch, rows: SparseRows, order: GeneOrder) -> Target:
        """The cells as the decoder should say them."""
        masked, tile = self.spec.num_sources > 0, tile_size(rows.data.device, len(batch))
        if masked and tile not in self._partly_measured:
            self._partly_measured[tile] = partly_measured(self.measured_sg, tile)
        return Target(
            order,
            rows.data.index_select(0, order.entries_z),
            batch.sources_n,
            self.measured_sg if masked else None,
            self._partly_measured[tile] if masked else None,
        )

    def forward(self, batch: MiniBatch, noise: Noise | None = None) -> StepOutput:
        """Encode, draw, decode and compare: with noise a training step, without a deterministic one.

        The decoder gets the PREDICTED categories as a soft Gumbel sample, and labels only under `decode_labels`.
        """
        counts = self.own_counts(batch)
        rows = self.normalized(batch, counts)
        order = GeneOrder.of(rows)
        seen = rows if noise is None else self.augmented(batch, noise, counts)
        seen_order = self._order_of(seen, rows, order) if torch.is_grad_enabled() else None
        posterior = self.encode(seen, self.center(batch, noise), seen_order, noise)
        latent_nw = posterior.mode() if noise is None else posterior.sample(noise, self.spec.temperature)
        if noise is not None and self.spec.decode_labels:
            known_nc = (batch.values_nc - self.units_2c[0]) / self.units_2c[1]
            latent_nw = with_labels(latent_nw, batch.codes_nl, known_nc, self.spec.latent)
        shares_n = batch.weights_n / batch.weights_n.sum()
        mean_error, errors_n = self.reconstruction_error(latent_nw, self.target(batch, rows, order), shares_n, noise)
        if noise is None or not self.spec.latent.num_diffusion:
            return StepOutput(rows, posterior, errors_n, mean_error)
        near = batch.neighborhood  # none where no cell carries the term; the term is there on every rank all the same
        diffusion = self._diffusion_error(near, latent_nw, shares_n, noise) if near else mean_error.new_zeros(())
        return StepOutput(rows, posterior, errors_n, mean_error, diffusion)

    @staticmethod
    def _order_of(seen: SparseRows, rows: SparseRows, order: GeneOrder) -> GeneOrder:
        """Of what is seen of the rows: the same where all of their entries are there."""
        return order if seen.indptr is rows.indptr else GeneOrder.of(seen)

    def _diffusion_error(self, near: Neighborhood, latent_nw: Tensor, shares_n: Tensor, noise: Noise) -> Tensor:
        """Scalar: squared error of the carrying cells decoded from a sample of their neighbours' average."""
        live_noise = replace(noise, rows_n=near.live.rows_n)
        seen = self.augmented(near.live, live_noise)
        live = self.encode(seen, self.center(near.live, live_noise), GeneOrder.of(seen), live_noise)
        dims, own_noise = self.spec.latent.diffusion_dims, replace(noise, rows_n=near.carrying.rows_n)
        mean_md, variance_md = (
            neighbor_average(live_vd[:, dims], near.owner_v, remembered_md.to(live_vd.dtype), near.counts_m)
            for live_vd, remembered_md in ((live.mean_nd, near.mean_md), (live.logvar_nd.exp(), near.variance_md))
        )
        normal_md = own_noise.normal(Purpose.DIFFUSION_GAUSSIAN, mean_md.shape[1]).to(mean_md.dtype)
        start = latent_nw.shape[1] - self.spec.latent.num_continuous + dims.start
        latent_mw = diffused(latent_nw[near.positions_m], mean_md, variance_md, normal_md, start)
        rows = self.normalized(near.carrying)
        target = self.target(near.carrying, rows, GeneOrder.of(rows))
        error, _ = self.reconstruction_error(latent_mw, target, shares_n[near.positions_m] / near.share, own_noise)
        return error
