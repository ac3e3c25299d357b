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
# # Persona space
#
# Every role has a vector: the mean activation of its answers. The principal components of these
# vectors say along which directions characters differ most.
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
print(f"{run.folder.name}: {len(run.layers)} layers, shown at layer {layer}")

# %% [markdown]
# The role vectors, [role, layer, hidden].

# %%
if (run.folder / "role_vectors.pt").exists():
    content = axiskit.load_role_vectors(run.folder / "role_vectors.pt")
    roles, vectors = content["roles"], content["vectors"]
else:  # the published data set: one file a role
    files = sorted((run.folder / "role_vectors").glob("*.pt"))
    roles = [file.stem for file in files]
    vectors = torch.stack([torch.load(file, weights_only=True).float() for file in files])
list(vectors.shape)

# %% [markdown]
# Principal components at the target layer. The mean over roles is subtracted first; the default
# (the model as itself) takes no part.

# %%
coordinates, variance, n_components, pca, scaler = axiskit.compute_pca(vectors, position)

# %% [markdown]
# How many directions are there? The dashed line is at 70 %. The paper needs 4 to 19 components for
# it, with 275 roles and far larger models. A few roles have room for few.

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axiskit.plot_variance_explained(variance[: len(roles) - 1], axes=axes)  # the last is 0
plt.show()

# %% [markdown]
# A component has no sign of its own. Here each points to the Assistant's side, as the axis does.

# %%
signs = torch.from_numpy(pca.components_).float() @ run.axis[position] < 0
coordinates[:, signs.numpy()] *= -1

# %% [markdown]
# The roles in the plane of the first two. The colour is the projection on the Assistant Axis: if it
# changes from left to right, what varies most between characters is how Assistant-like they are.
# The star is the default. Roles at both ends of a component are named.

# %%
default = run.axis + vectors.mean(dim=0)  # what the axis is made of
star = pca.transform(scaler.transform(default[None, position]).double().numpy())[0]
star[signs.numpy()] *= -1
projections = axiskit.project(vectors, run.axis, position)

label = {"textcoords": "offset points", "fontsize": 8}

figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
points = axes.scatter(coordinates[:, 0], coordinates[:, 1], c=projections, cmap="cividis")
axes.scatter(star[0], star[1], marker="*", s=200, color="black")
for end in [coordinates[:, :2].argsort(axis=0)[:4], coordinates[:, :2].argsort(axis=0)[-4:]]:
    for i in sorted({*end.flat}):
        below = coordinates[i, 1] < star[1]
        axes.annotate(roles[i], coordinates[i, :2], (5, -11 if below else 5), **label)
axes.annotate("default", star[:2], (0, 10), ha="center", weight="bold", **label)
axes.margins(0.1)
axes.set(xlabel=f"PC1 ({variance[0]:.0%})", ylabel=f"PC2 ({variance[1]:.0%})")
figure.colorbar(points, label="projection on the axis")
plt.show()

# %% [markdown]
# Both ends of the first components. What does each seem to mean?

# %%
table = pd.DataFrame(coordinates, index=roles)
pd.DataFrame(
    {
        f"PC{i + 1}": {
            "low end": ", ".join(table[i].nsmallest(4).index),
            "high end": ", ".join(table[i].nlargest(4).index),
        }
        for i in range(min(3, n_components))
    }
).T

# %% [markdown]
# **Bear in mind.** The embedded model has 135 million parameters and answers as 24 roles: a
# demonstration. With so few, a component after the first can hang on a single role.
