"""axiskit: compute, read and use the Assistant Axis of a chat model.

Importing axiskit imports neither torch nor transformers: each name loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "load_model": "models",
    "get_config": "models",
    "MODEL_CONFIGS": "models",
    "generate_response": "chat",
    "extract_response_activations": "activations",
    "compute_axis": "axis",
    "load_axis": "axis",
    "save_axis": "axis",
    "project": "axis",
    "project_batch": "axis",
    "cosine_similarity_per_layer": "axis",
    "axis_norm_per_layer": "axis",
    "ActivationSteering": "steering",
    "load_capping_config": "capping",
    "build_capping_steerer": "capping",
    "load_role_vectors": "vectors",
    "load_trait_vectors": "traits",
    "load_activations": "artifacts",
    "compute_pca": "persona_space",
    "MeanScaler": "persona_space",
    "L2MeanScaler": "persona_space",
    "plot_variance_explained": "figures",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'axiskit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"axiskit.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
