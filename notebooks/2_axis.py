# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The Assistant Axis
#
#     axis[layer] = default vector - mean of the role vectors
#
# It points to the Assistant: a higher projection is more Assistant-like.
#
# This reads the newest finished run in `results/` (after `make axis`), or the folder that the
# environment variable `AXISKIT_RESULTS` names. That may be a model's folder of the published data
# set `lu-christina/assistant-axis-vectors`, too: see the README beside this notebook.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch

import axiskit
from axiskit.runs import load_run, newest_run

run = load_run(os.environ.get("AXISKIT_RESULTS") or newest_run("../results"))
layer = run.target_layer
position = run.layers.index(layer)  # along the layer dimension of what the run keeps
print(f"{run.folder.name}: axis {list(run.axis.shape)}, shown at layer {layer}")

# %%
if (run.folder / "role_vectors.pt").exists():
    content = axiskit.load_role_vectors(run.folder / "role_vectors.pt")
    roles, vectors = content["roles"], content["vectors"]
else:  # the published data set: one file a role
    files = sorted((run.folder / "role_vectors").glob("*.pt"))
    roles = [file.stem for file in files]
    vectors = torch.stack([torch.load(file, weights_only=True).float() for file in files])

# %% [markdown]
# How long is it? Activations grow with depth, and so does the axis. Therefore its length is shown
# as a share of the mean length of a role vector. Dashed: the target layer.

# %%
share = axiskit.axis_norm_per_layer(run.axis) / vectors.norm(dim=-1).mean(dim=0)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(run.layers, share, marker="o", ms=3.5)
axes.axvline(layer, color="grey", lw=0.8, ls="--")
axes.set(xlabel="layer", ylabel="axis length / role vector length", ylim=(0, None))
plt.show()

# %% [markdown]
# Is it the direction along which characters differ most? Its cosine with the first principal
# component of the role vectors says so. PC1 never sees the default, so a high one is not there by
# construction. The paper finds more than 0.6 (dotted) at all layers.

# %%
components = [axiskit.compute_pca(vectors, i)[3].components_[0] for i in range(len(run.layers))]
pc1 = torch.stack([torch.from_numpy(component).float() for component in components])
cosine = axiskit.cosine_similarity_per_layer(run.axis, pc1).abs()  # PC1 has no sign

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(run.layers, cosine, marker="o", ms=3.5)
axes.axhline(0.6, color="grey", lw=0.8, ls=":")
axes.axvline(layer, color="grey", lw=0.8, ls="--")
axes.set(xlabel="layer", ylabel="|cos(axis, PC1)|", ylim=(0, 1.02))
plt.show()

# %% [markdown]
# Which roles stand nearest to the Assistant, which farthest? The star is the default. Of many roles
# the 15 at either end are shown.

# %%
projections = axiskit.project(vectors, run.axis, position)
default = axiskit.project(run.axis + vectors.mean(dim=0), run.axis, position)

order = pd.Series(projections, index=roles).sort_values()
if len(order) > 30:
    order = pd.concat([order.head(15), order.tail(15)])

figure, axes = plt.subplots(figsize=(6, 1 + 0.18 * len(order)), layout="constrained")
axes.scatter(order, order.index, c=order, cmap="cividis", s=26)
axes.scatter(default, "default", marker="*", s=120, color="black")
axes.set(xlabel=f"projection on the axis after layer {layer}", ylim=(-0.8, len(order) + 0.8))
axes.grid(axis="x", alpha=0.25)
plt.show()

# %% [markdown]
# **Bear in mind.** A projection is in the units of the activations: two layers or two models cannot
# be compared by it. The roles shown are those that made the axis, so it fits their noise, too. The
# embedded model has 135 million parameters, a demonstration: in its early layers the cosine is far
# below that of the paper, and its axis says nothing about a larger model.
