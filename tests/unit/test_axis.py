import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axiskit import (
    L2MeanScaler,
    MeanScaler,
    axis_norm_per_layer,
    compute_axis,
    compute_pca,
    cosine_similarity_per_layer,
    plot_variance_explained,
    project,
    project_batch,
)
from axiskit.errors import ArtifactError, NonFiniteError

seeds = st.integers(0, 2**32)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seeds, st.permutations(range(6)))
def test_axis_does_not_depend_on_role_order(seed, order):
    vectors, default = random(seed, 6, 3, 8), random(seed + 1, 3, 8)
    expected = compute_axis(vectors, default)
    assert torch.allclose(compute_axis(vectors[list(order)], default), expected, atol=1e-6)


@given(seeds)
def test_axis_points_to_the_default(seed):
    vectors, default = random(seed, 6, 3, 8), random(seed + 1, 3, 8)
    axis = compute_axis(vectors, default)
    gap = project_batch(default, axis) - project_batch(vectors, axis).mean(dim=0)
    assert torch.allclose(gap, axis_norm_per_layer(axis), atol=1e-5)


def test_a_planted_direction_comes_back_as_axis_and_pc1():
    direction = torch.nn.functional.normalize(random(0, 64), dim=0)
    distance = torch.linspace(1, 30, 40)
    vectors = (0.3 * random(1, 40, 1, 64)) - distance[:, None, None] * direction
    axis = compute_axis(vectors, 0.1 * random(2, 1, 64))
    assert torch.cosine_similarity(axis[0], direction, dim=0) > 0.99
    coordinates, variance, n_components, pca, scaler = compute_pca(vectors, 0)
    pc1 = torch.from_numpy(pca.components_[0]).float()
    assert abs(torch.cosine_similarity(pc1, direction, dim=0)) > 0.99
    assert variance[0] > 0.9
    assert coordinates.shape == (40, n_components)
    assert isinstance(scaler, MeanScaler)


@given(seeds, st.floats(0.1, 10))
def test_projection_is_linear_and_ignores_the_axis_length(seed, scale):
    h, axis = random(seed, 5, 3, 8), random(seed + 1, 3, 8)
    expected = project_batch(h, axis)
    assert torch.allclose(project_batch(h, scale * axis), expected, atol=1e-5)
    assert torch.allclose(project_batch(2 * h, axis), 2 * expected, atol=1e-5)
    assert torch.equal(project(h, axis, 1), expected[:, 1])
    assert project(h[0], axis, 2).ndim == 0


def test_projection_of_bfloat16_is_taken_in_float32():
    h, axis = random(0, 2, 3, 8).bfloat16(), random(1, 3, 8)
    assert project_batch(h, axis).dtype == torch.float32
    assert torch.allclose(project_batch(h, axis), project_batch(h.float(), axis))


def test_misfits_say_both_numbers():
    with pytest.raises(ArtifactError, match=r"\[3, 8\], the axis \[2, 8\]"):
        project_batch(random(0, 5, 3, 8), random(0, 2, 8))
    with pytest.raises(ArtifactError, match=r"\[3, 8\] and \[3, 9\]"):
        cosine_similarity_per_layer(random(0, 3, 8), random(0, 3, 9))
    with pytest.raises(NonFiniteError):
        compute_axis(torch.full((2, 1, 3), float("nan")), torch.zeros(1, 3))


def test_cosine_per_layer():
    a = random(0, 3, 8)
    assert torch.allclose(cosine_similarity_per_layer(a, -2 * a), -torch.ones(3))


def test_l2_scaler_gives_unit_lengths():
    scaler = L2MeanScaler()
    assert torch.allclose(scaler.fit_transform(random(0, 9, 8)).norm(dim=-1), torch.ones(9))
    with pytest.raises(RuntimeError, match="not fitted"):
        MeanScaler().transform(random(0, 9, 8))


def test_plot_variance_explained_draws_the_cumulative_share():
    axes = plot_variance_explained(torch.tensor([0.5, 0.3, 0.2]).numpy())
    assert [round(float(y), 3) for y in axes.lines[0].get_ydata()] == [0.5, 0.8, 1.0]
