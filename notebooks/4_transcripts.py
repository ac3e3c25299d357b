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
# # Transcripts
#
# A model can drift from the Assistant while a conversation goes on. Here a transcript is projected
# turn by turn.
#
# This reads the newest finished run in `results/` (after `make axis`), or the folder that the
# environment variable `AXISKIT_RESULTS` names, and its model.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch

import axiskit
from axiskit.runs import load_run, load_run_model, newest_run
from axiskit.trajectories import project_turns
from axiskit.transcripts import first_crossing, load_transcript

run = load_run(os.environ.get("AXISKIT_RESULTS") or newest_run("../results"))
layer = run.target_layer
position = run.layers.index(layer)  # along the layer dimension of what the run keeps

# %%
model, tokenizer = load_run_model(run)

# %% [markdown]
# A conversation that the run held with its model. Any file with
# `{"conversation": [{"role": ..., "content": ...}, ...]}` will do, of any model: name it here.

# %%
path = sorted(run.folder.glob("conversations/*.unsteered.json"))[0]
messages = load_transcript(path).messages
print(path.name)
print(messages[0]["content"])

# %% [markdown]
# One pass over the conversation gives the mean projection of each assistant turn, at every layer.

# %%
turns = project_turns(
    model, tokenizer, messages, run.axis, run.layers, layer, **run.chat_template_kwargs
)
trajectory = [turn[f"layer_{layer}"] for turn in turns]

# %% [markdown]
# The band holds the middle 80 % of the default's rollouts in `projections.parquet`. The ring marks
# the first turn below it.

# %%
low, high = run.default_band
first = first_crossing(trajectory, low)

figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
axes.axhspan(low, high, color="#dddddd", lw=0, label="default, middle 80 %")
axes.plot(range(1, len(trajectory) + 1), trajectory, color="#4477aa", marker="o", label=path.stem)
if first is not None:
    axes.scatter(first + 1, trajectory[first], s=110, facecolor="none", edgecolor="#ee6677")
axes.set(xlabel="assistant turn", ylabel=f"projection after layer {layer}")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The activations themselves say more than one number a turn.

# %%
[activations] = axiskit.extract_response_activations(
    model,
    tokenizer,
    [messages],
    run.layers,
    per_turn=True,
    chat_template_kwargs=run.chat_template_kwargs,
)
list(activations.shape)  # [turn, layer, hidden]

# %% [markdown]
# For example: which role does a turn resemble most? That is the role whose vector, seen from the
# mean of the roles, has the highest cosine with the turn.

# %%
content = axiskit.load_role_vectors(run.folder / "role_vectors.pt")
names = [*content["roles"], "default"]
everyone = torch.cat([content["vectors"], content["default"][None]])[:, position]
mean = content["vectors"][:, position].mean(dim=0)
cosine = torch.cosine_similarity(
    (activations[:, position] - mean)[:, None], (everyone - mean)[None], dim=-1
)

pd.DataFrame(
    {
        "turn": range(1, len(trajectory) + 1),
        "projection": axiskit.project(activations, run.axis, position),
        "nearest": [names[int(i)] for i in cosine.argmax(dim=1)],
        "cosine": cosine.max(dim=1).values,
        "begins": [m["content"][:40] for m in messages if m["role"] == "assistant"],
    }
).set_index("turn").round(2)

# %% [markdown]
# **Bear in mind.** Read the answers, too. A long conversation makes the embedded model, with 135
# million parameters, repeat itself: then a falling projection says as much of a lost thread as of a
# changed character. And where a turn stands depends on its subject, whoever speaks.
