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
# # Steering and capping
#
# **Steering** adds a multiple of the axis to the activations while the model writes. **Capping**
# only lifts what falls below a floor along the axis, and leaves the rest alone.
#
# This reads the newest finished run in `results/` (after `make axis`), or the folder that the
# environment variable `AXISKIT_RESULTS` names, and runs its model: minutes on a CPU. The published
# data set has axes and caps, too: see the README beside this notebook.

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch

import axiskit
from axiskit.capping import capping_floors
from axiskit.runs import load_run, load_run_model, newest_run

run = load_run(os.environ.get("AXISKIT_RESULTS") or newest_run("../results"))
layer = run.target_layer
position = run.layers.index(layer)  # along the layer dimension of what the run keeps

# %% [markdown]
# The model of the run. For a published axis name it: `load_run_model(run, "Qwen/Qwen3-32B")`.

# %%
model, tokenizer = load_run_model(run)

# %% [markdown]
# ## Steering
#
# The same questions, answered with the axis added times -2 ... 2 at the target layer. The same seed
# gives the same answer, so what differs comes from the axis alone.

# %%
questions = [
    "Who are you?",
    "What should I do with a free afternoon?",
    "What matters most in life?",
]
coefficients = [-2, -1, 0, 1, 2]


def answer(messages):
    """A short answer, the same each time."""
    return axiskit.generate_response(
        model,
        tokenizer,
        messages,
        max_new_tokens=40,
        seed=0,
        chat_template_kwargs=run.chat_template_kwargs,
    )


answers = {}
for coefficient in coefficients:
    with axiskit.ActivationSteering(
        model, run.axis[position], coefficients=coefficient, layer_indices=layer
    ):
        for question in questions:
            answers[question, coefficient] = answer([{"role": "user", "content": question}])

# %%
wrapped = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
pd.Series(answers).unstack()[coefficients].loc[questions[:1]].T.style.set_properties(**wrapped)

# %% [markdown]
# How Assistant-like are these texts? The model reads them **without** steering, and the mean
# projection of each answer is taken. So the figure shows what steering did to the words. Grey: each
# question.

# %%
talks = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    for (question, _), text in answers.items()
]
activations = axiskit.extract_response_activations(
    model, tokenizer, talks, run.layers, chat_template_kwargs=run.chat_template_kwargs
)
projections = axiskit.project(torch.stack(activations), run.axis, position)
values = pd.Series(projections, index=pd.MultiIndex.from_tuples(answers)).unstack()

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for question in questions:
    axes.plot(coefficients, values.loc[question, coefficients], color="#bbbbbb", marker="o", ms=3)
axes.plot(coefficients, values[coefficients].mean(), color="#4477aa", marker="o", label="mean")
axes.set(xlabel="coefficient of the axis", ylabel=f"projection after layer {layer}")
axes.set_xticks(coefficients)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Capping
#
# The run has calibrated floors: quantiles of the projections of all its rollouts, for windows of
# layers. In ids like `layers_14:18-p0.25` the window ends before layer 18, and the quantile is
# counted from the other side, as in the published files: the floor is the 0.75 quantile.

# %%
print(run.experiment)
for capped_layer, floor in capping_floors(run.capping, run.experiment).items():
    print(f"layer {capped_layer}: floor {floor:.1f}")

# %% [markdown]
# A strong persona, as it is and capped.

# %%
personas = {
    "pirate": "You are a pirate captain of the seven seas. Say arr, ahoy, matey and ye, swear by "
    "yer ship and treasure, and answer everything in a rough, salty sailor's voice.",
    "oracle": "You are the oracle of the temple, wrapped in sacred smoke. You see what will be, "
    "but never say it plainly: only riddles, only omens of serpents, stars, gates and fate.",
}
question = "I keep putting off the things I need to do. What would you tell me?"

rows = {}
for name, system_prompt in personas.items():
    messages = [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": question},
    ]
    plain = answer(messages)
    with axiskit.build_capping_steerer(model, run.capping, run.experiment) as steerer:
        rows[name] = {"as it is": plain, "capped": answer(messages), "stats": steerer.stats}

table = pd.DataFrame(rows).T
table[["as it is", "capped"]].style.set_properties(**wrapped)

# %% [markdown]
# How much did the cap do? It fires on a share of all tokens x layers that it could act on, prompt
# included, and then moves an activation by a small part of its length.

# %%
pd.DataFrame(
    {
        name: {"firing rate": stats.fired, "shift / length": stats.mean_relative_shift}
        for name, stats in table["stats"].items()
    }
).T.style.format("{:.1%}")

# %% [markdown]
# **Bear in mind.** The embedded model has 135 million parameters: its answers are poor with and
# without a cap. A cap may take one persona's voice away and leave another half of it. With another
# seed, question or window of layers you will see other things: try some before you believe any.
