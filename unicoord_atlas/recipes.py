"""The lines in which the recipes "paper" and "released" differ from the defaults of `config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "data": {"mask_unmeasured": False, "min_cells": 0},
        "latent": {"standardize": False, "calibrate": False, "conditional": False},
        "loss": {"beta": 1.0, "beta_warmup_steps": 0, "classification": 100.0, "independence": 0.0},
        "augment": {"thinning": 0.0, "gene_dropout": 0.0, "gene_panels": 0.0},
        "model": {"output_bias": "default", "relu_gradient": "y", "encoder_min_cells": 0, "center_input": False},
        "train": {
            "warmup_steps": 0,
            "early_stopping_patience": 0,
            "average": False,
            "learning_rate_rule": "constant",
        },
    },
    "released": {
        "data": {"mask_unmeasured": False, "min_cells": 200, "validation_fraction": 0.0},
        "latent": {"standardize": False, "calibrate": False, "conditional": False},
        "loss": {
            "beta": 30.0,
            "beta_warmup_steps": 0,
            "capacity_nats": 5.0,
            "classification": 100.0,
            "diffusion": 0.001,
            "clustering": 0.001,
            "independence": 0.0,
            "per_gene": True,
        },
        "augment": {"thinning": 0.0, "gene_dropout": 0.0, "gene_panels": 0.0},
        "model": {"output_bias": "default", "relu_gradient": "y", "encoder_min_cells": 0, "center_input": False},
        "train": {
            "epochs": 100,
            "batch_size": 128,
            "warmup_steps": 0,
            "early_stopping_patience": 0,
            "average": False,
            "learning_rate_rule": "constant",
        },
    },
}
