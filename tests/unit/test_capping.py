"""Capping configs: floors inside, the published layout with the opposite sign outside."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from conftest import ARCHITECTURES, HIDDEN, N_LAYERS
from hypothesis import given, settings
from hypothesis import strategies as st

from axiskit import ActivationSteering, build_capping_steerer, load_axis, load_capping_config
from axiskit.artifacts import read_table, write_table
from axiskit.axis import save_axis
from axiskit.capping import (
    calibrate_capping,
    capping_floors,
    capping_windows,
    recommended_experiment,
)
from axiskit.errors import ArtifactError, InterventionError

MODEL = {"name": "tiny", "hidden_size": HIDDEN, "n_layers": N_LAYERS}


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]()).eval()


@pytest.fixture
def calibrated(tmp_path):
    """Projections of 40 rollouts, and what calibration makes of them."""
    axis = random(0, N_LAYERS, HIDDEN)
    metadata = {"model": MODEL, "stages": {}}
    save_axis(tmp_path / "axis.pt", axis, {**metadata, "layers": list(range(N_LAYERS))})
    projections = np.random.default_rng(0).normal(size=(40, N_LAYERS)).astype(np.float32)
    projections[:8] += 2  # the default
    table = {
        "rollout_id": [f"{i}" for i in range(40)],
        "role": ["default"] * 8 + ["pirate"] * 32,
        "kind": ["default"] * 8 + ["role"] * 32,
        **{f"layer_{i}": projections[:, i] for i in range(N_LAYERS)},
    }
    write_table(tmp_path / "projections.parquet", pa.table(table), metadata)
    calibrate_capping(
        projections_path=tmp_path / "projections.parquet",
        axis_path=tmp_path / "axis.pt",
        capping_config_path=tmp_path / "capping_config.pt",
        capping_path=tmp_path / "capping.parquet",
        widths=[2, 3],
        step=1,
        floor_quantiles=[0.75, 0.5],
    )
    return tmp_path, axis, projections


def logits(model, steering):
    with steering, torch.inference_mode():
        return model(torch.tensor([[3, 14, 15, 92, 65, 35]])).logits


def test_floors_are_quantiles_of_all_rollouts(calibrated):
    folder, _, projections = calibrated
    config = load_capping_config(folder / "capping_config.pt")
    floors = capping_floors(config, "layers_1:3-p0.25")
    assert sorted(floors) == [1, 2]
    assert floors[1] == pytest.approx(np.quantile(projections[:, 1], 0.75), abs=1e-5)
    rows = (
        read_table(folder / "capping.parquet")[0].to_pandas().set_index(["layer", "floor_quantile"])
    )
    assert rows.loc[(1, 0.75), "floor"] == pytest.approx(floors[1])
    assert rows.loc[(1, 0.75), "n_rollouts"] == 40
    below = (projections[:, 1] < floors[1])[:8].mean()
    assert rows.loc[(1, 0.75), "default_below"] == pytest.approx(below)
    # an experiment for every window of the widths and step, at every quantile
    assert [experiment["id"] for experiment in config["experiments"]] == [
        f"layers_{window}-{quantile}"
        for window in ("0:2", "1:3", "2:4", "0:3", "1:4")
        for quantile in ("p0.25", "p0.5")
    ]


def test_written_signs_are_the_published_ones(calibrated):
    folder, axis, _ = calibrated
    content = torch.load(folder / "capping_config.pt", weights_only=True)
    floors = capping_floors(content, 0)
    for intervention in content["experiments"][0]["interventions"]:
        vector = content["vectors"][intervention["vector"]]
        assert torch.allclose(vector["vector"], -axis[vector["layer"]])
        assert intervention["cap"] == -floors[vector["layer"]]


@pytest.mark.parametrize("experiment", ["layers_1:3-p0.25", -1])
def test_saved_and_read_back_acts_as_floors_on_the_axis(calibrated, llama, experiment):
    folder, axis, _ = calibrated
    config = load_capping_config(folder / "capping_config.pt", axis)
    floors = capping_floors(config, experiment)
    by_hand = ActivationSteering(
        llama,
        axis[list(floors)],
        layer_indices=list(floors),
        intervention_type="capping",
        floor=list(floors.values()),
    )
    steering = build_capping_steerer(llama, config, experiment)
    found = logits(llama, steering)
    assert torch.allclose(found, logits(llama, by_hand), atol=1e-6)
    assert steering.stats.fired > 0


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from(["layers_1:3-p0.25", "layers_1:3-p0.75"]))
def test_a_published_file_acts_as_the_published_formula(llama, tmp_path_factory, seed, name):
    """Unknown length, names of their own, no metadata: h - v max(<h, v> - cap, 0)."""
    vector = 3 * random(seed, HIDDEN)
    published = {
        "vectors": {"layer_1/contrast": {"vector": vector.bfloat16(), "layer": 1}},
        "experiments": [
            {"id": "coefficients", "interventions": [{"vector": "layer_1/contrast", "coeff": 1}]},
            {"id": name, "interventions": [{"vector": "layer_1/contrast", "cap": -0.3}]},
        ],
    }
    path = tmp_path_factory.mktemp("published") / "capping_config.pt"
    torch.save(published, path)
    config = load_capping_config(path, -vector[None].repeat(4, 1))
    unit = vector.bfloat16().float()
    unit = unit / unit.norm()

    def hook(module, args, output):
        excess = (output @ unit + 0.3).clamp(min=0)
        return output - excess[..., None] * unit

    handle = llama.model.layers[1].register_forward_hook(hook)
    with torch.inference_mode():
        expected = llama(torch.tensor([[3, 14, 15, 92, 65, 35]])).logits
    handle.remove()
    steering = build_capping_steerer(llama, config, name, spare_sink=False)
    assert torch.allclose(logits(llama, steering), expected, atol=1e-5)
    with pytest.raises(InterventionError, match="no intervention with a cap"):
        build_capping_steerer(llama, config, "coefficients")


def test_a_cap_that_lowers_projections_is_refused(calibrated):
    folder, axis, _ = calibrated
    content = torch.load(folder / "capping_config.pt", weights_only=True)
    for vector in content["vectors"].values():
        vector["vector"] = -vector["vector"]
    torch.save(content, folder / "turned.pt")
    with pytest.raises(ArtifactError, match="points to the Assistant"):
        load_capping_config(folder / "turned.pt", axis)
    for vector in content["vectors"].values():  # without the axis, by what the file says itself
        for key in ("default_projection", "role_projection"):
            vector[key] = -vector[key]
    torch.save(content, folder / "turned.pt")
    with pytest.raises(ArtifactError, match="points to the Assistant"):
        load_capping_config(folder / "turned.pt")


def test_misfits_say_both_numbers(calibrated, llama):
    folder, axis, _ = calibrated
    path = folder / "capping_config.pt"
    with pytest.raises(ArtifactError, match="hidden size 32, that of the axis is 31"):
        load_capping_config(path, axis[:, :31])
    with pytest.raises(ArtifactError, match="layer 3: not kept"):
        load_capping_config(path, axis[:3])
    config = load_capping_config(path, axis)
    config["metadata"]["model"] = {"name": "big", "n_layers": 64}
    with pytest.raises(InterventionError, match="made for 64 layers, the model has 4"):
        build_capping_steerer(llama, config, 0)
    del config["metadata"]
    with pytest.raises(InterventionError, match=r"nearest: layers_1:3-p0\.25"):
        build_capping_steerer(llama, config, "layers_1:3-p0.2")
    with pytest.raises(InterventionError, match="the capping config has 10"):
        build_capping_steerer(llama, config, 10)


class Malicious:
    def __reduce__(self):
        return (print, ("code of the file runs",))


def test_code_and_other_layouts_are_refused(tmp_path, capsys):
    path = tmp_path / "capping_config.pt"
    with open(path, "wb") as file:
        pickle.dump({"vectors": Malicious(), "experiments": []}, file)
    with pytest.raises(ArtifactError, match="could run code"):
        load_capping_config(path)
    torch.save({"vectors": Malicious(), "experiments": []}, path)
    with pytest.raises(ArtifactError, match="could run code"):
        load_capping_config(path)
    assert "code of the file runs" not in capsys.readouterr().out
    torch.save({"vectors": {"a": {"layer": 1}}, "experiments": []}, path)
    with pytest.raises(ArtifactError, match="not laid out as a capping config"):
        load_capping_config(path)
    torch.save({"axis": torch.zeros(2, 3)}, path)
    with pytest.raises(ArtifactError, match="vectors, experiments missing"):
        load_capping_config(path)


def test_published_axes_load_bare_or_in_a_dict(tmp_path):
    axis = random(0, 4, 8).bfloat16()
    for content in (axis, {"axis": axis}, {"axis": axis, "metadata": {"n": 1}}):
        torch.save(content, tmp_path / "axis.pt")
        assert torch.equal(load_axis(tmp_path / "axis.pt"), axis.float())


def test_windows_take_only_layers_that_were_kept():
    windows = [(w.start, w.stop) for w in capping_windows([0, 1, 2, 4, 5], [2], 1)]
    assert windows == [(0, 2), (1, 3), (4, 6)]
    assert len([*capping_windows(range(64), [8], 2)]) == 29


def test_recommended_starts_at_seven_tenths():
    def config(n_layers, width, step):
        vectors = {str(i): {"vector": torch.ones(1), "layer": i} for i in range(n_layers)}
        experiments = [
            {
                "id": f"layers_{w.start}:{w.stop}-{q}",
                "interventions": [{"vector": str(i), "cap": 0.0} for i in w],
            }
            for w in capping_windows(range(n_layers), [width, 4], step)
            for q in ("p0.25", "p0.5")
        ]
        return {"vectors": vectors, "experiments": experiments}

    assert recommended_experiment(config(64, 8, 2), 64) == "layers_44:52-p0.25"
    assert recommended_experiment(config(80, 16, 2), 80) == "layers_56:72-p0.25"
