"""Interventions on tiny models of all architectures, and their maths."""

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, HIDDEN, N_LAYERS
from hypothesis import given
from hypothesis import strategies as st

from axiskit import ActivationSteering
from axiskit.errors import InterventionError, ModelError
from axiskit.layers import block_output, decoder, decoder_blocks
from axiskit.models import load_model


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(architecture="llama"):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
    return model.eval()


@pytest.fixture(scope="module")
def llama():
    return build()


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def each(request):
    return build(request.param)


IDS = torch.tensor([[3, 14, 15, 92, 65, 35], [27, 18, 28, 18, 28, 45]])


@torch.inference_mode()
def streams(model, *layers, **inputs):
    """Residual streams after the layers [batch, token, hidden], and the logits."""
    blocks, kept = decoder_blocks(model), {}
    hooks = [
        blocks[i].register_forward_hook(
            lambda module, args, out, i=i: kept.__setitem__(i, block_output(out).clone())
        )
        for i in layers
    ]
    try:
        logits = model(**({"input_ids": IDS} | inputs)).logits
    finally:
        for hook in hooks:
            hook.remove()
    return [kept[i] for i in layers], logits


def test_hook_equals_hidden_states_below_the_last_layer(each):
    found, _ = streams(each, *range(N_LAYERS - 1))
    with torch.inference_mode():
        expected = each(IDS, output_hidden_states=True).hidden_states
    for layer, stream in enumerate(found):
        assert torch.allclose(stream, expected[layer + 1], atol=1e-5)


def test_every_architecture_is_steered_and_let_go(each):
    _, before = streams(each)
    vector = random(0, HIDDEN)
    with ActivationSteering(each, vector, layer_indices=1, coefficients=5.0) as steering:
        _, during = streams(each)
    _, after = streams(each)
    assert (during[:, 1:] - before[:, 1:]).abs().max() > 1e-2
    assert torch.equal(after, before)
    assert steering.stats.n == IDS.numel() - len(IDS)  # the first tokens are spared
    assert steering.stats.fired == 1
    assert steering.stats.mean_shift == pytest.approx(5 * float(vector.norm()), rel=1e-4)


@given(st.integers(0, 2**32), st.sampled_from([-3.0, -0.5, 0.0, 0.5, 3.0]))
def test_capped_projection_obeys_floor_and_ceiling(llama, seed, bound):
    vector = random(seed, HIDDEN)
    unit = vector / vector.norm()
    [plain], _ = streams(llama, 2)
    for side in ("floor", "cap_thresholds"):
        steering = ActivationSteering(
            *(llama, vector), layer_indices=2, intervention_type="capping", **{side: bound}
        )
        with steering:
            [capped], _ = streams(llama, 2)
        along = (capped @ unit)[:, 1:]
        assert (along >= bound - 1e-4 if side == "floor" else along <= bound + 1e-4).all()
        apart = (capped - plain) - ((capped - plain) @ unit)[..., None] * unit
        assert apart.abs().max() < 1e-4  # the orthogonal part is untouched
        inside = plain @ unit >= bound if side == "floor" else plain @ unit <= bound
        assert torch.equal(capped[inside], plain[inside])
        expected = 1 - float(inside[:, 1:].float().mean())
        assert steering.stats.fired == pytest.approx(expected)
        again = ActivationSteering(
            *(llama, vector), layer_indices=2, intervention_type="capping", **{side: bound}
        )
        with steering, again:
            [twice], _ = streams(llama, 2)
        assert torch.allclose(twice, capped, atol=1e-5)  # capping twice = once


@given(st.integers(0, 2**32))
def test_ceiling_along_the_negated_vector_is_a_floor(llama, seed):
    vector = random(seed, HIDDEN)
    kept = []
    for arguments in (
        {"steering_vectors": vector, "floor": 0.7},
        {"steering_vectors": -3 * vector, "cap_thresholds": -0.7},
    ):
        with ActivationSteering(llama, **arguments, layer_indices=1, intervention_type="capping"):
            kept += streams(llama, 1)[0]
    assert torch.allclose(*kept, atol=1e-5)


def test_coefficient_zero_is_identity(llama):
    _, before = streams(llama)
    with ActivationSteering(llama, random(0, HIDDEN), layer_indices=1, coefficients=0) as steering:
        _, during = streams(llama)
    assert torch.equal(during, before)
    assert steering.stats.fired == 0


def test_ablation_removes_and_replaces(llama):
    vector, mean = random(0, HIDDEN), random(1, HIDDEN)
    unit = vector / vector.norm()
    with ActivationSteering(
        llama, vector, layer_indices=1, coefficients=0, intervention_type="ablation"
    ):
        [stream], _ = streams(llama, 1)
    assert (stream @ unit)[:, 1:].abs().max() < 1e-4
    with ActivationSteering(
        llama, vector, layer_indices=1, coefficients=2, intervention_type="ablation"
    ):
        [stream], _ = streams(llama, 1)
    assert torch.allclose((stream @ unit)[:, 1:], 2 * vector.norm(), atol=1e-4)
    with ActivationSteering(
        *(llama, vector), layer_indices=1, intervention_type="mean_ablation", mean_activations=mean
    ):
        [stream], _ = streams(llama, 1)
    assert torch.allclose((stream @ unit)[:, 1:], mean @ unit, atol=1e-4)


def test_several_vectors_and_layers(llama):
    axis = random(0, N_LAYERS, HIDDEN)
    [one], _ = streams(llama, 0)
    with ActivationSteering(
        llama, axis[[0, 0, 2]], layer_indices=[0, 0, 2], coefficients=[1, -2, 1]
    ) as steering:
        [changed], _ = streams(llama, 0)
    expected = one + axis[0] - 2 * axis[0]
    assert torch.allclose(changed[:, 1:], expected[:, 1:], atol=1e-5)
    assert steering.layers == [0, 2]
    with ActivationSteering(llama, axis[0], layer_indices=[0, -1]) as steering:
        assert steering.layers == [0, N_LAYERS - 1]


def test_last_position_and_first_token(llama):
    vector = random(0, HIDDEN)
    [plain], _ = streams(llama, 1)
    with ActivationSteering(llama, vector, layer_indices=1, positions="last"):
        [last], _ = streams(llama, 1)
    assert torch.equal(last[:, :-1], plain[:, :-1])
    assert torch.allclose(last[:, -1], plain[:, -1] + vector)
    with ActivationSteering(llama, vector, layer_indices=1, spare_sink=False):
        [everywhere], _ = streams(llama, 1)
    assert torch.allclose(everywhere, plain + vector, atol=1e-6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    [plain], _ = streams(llama, 1, attention_mask=mask)
    with ActivationSteering(llama, vector, layer_indices=1) as steering:
        [padded], _ = streams(llama, 1, attention_mask=mask)
    changed = (padded != plain).any(dim=-1)
    assert changed[0].tolist() == [True, True, False, True, True, True]
    assert changed[1].tolist() == [False, True, True, True, True, True]
    assert steering.stats.n == 3 + 5  # padding does not count
    assert [steering.stats_of(row).n for row in (0, 1)] == [3, 5]


def test_cached_decoding_equals_the_whole_text_at_once(each):
    """What a token was given in the prefill, and in single steps, is what one pass gives it."""
    vector = random(0, HIDDEN)
    with ActivationSteering(
        *(each, vector), layer_indices=[1, 2], intervention_type="capping", floor=1.0
    ):
        _, whole = streams(each)
        with torch.inference_mode():
            output = each(IDS[:, :3], use_cache=True)
            steps = [output.logits[:, -1]]
            for i in range(3, IDS.shape[1]):
                cache = output.past_key_values
                output = each(IDS[:, i : i + 1], past_key_values=cache, use_cache=True)
                steps.append(output.logits[:, -1])
    assert torch.allclose(torch.stack(steps, dim=1), whole[:, 2:], atol=1e-4)


def test_batched_generation_equals_one_by_one(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32")
    prompts = ["Why?", "What is this about?"]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    tokenizer.padding_side = "left"
    steering = ActivationSteering(
        *(model, random(0, HIDDEN)), layer_indices=[1, 2], intervention_type="capping", floor=3.0
    )
    with steering:
        batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        together = model.generate(**batch, **settings)[:, -12:]
        for row, prompt in zip(together, prompts, strict=True):
            alone = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            assert torch.equal(model.generate(**alone, **settings)[0, -12:], row)
    plain = model.generate(**batch, **settings)[:, -12:]
    assert not torch.equal(plain, together)


def test_a_model_spread_over_devices_is_capped_the_same(tiny_model):
    """Half of the blocks on disk: accelerate moves them and their inputs about, as between GPUs."""
    model, _ = load_model(tiny_model, dtype="float32")
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    device_map = dict.fromkeys(parts, "cpu") | {
        f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(N_LAYERS)
    }
    spread = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, device_map=device_map, offload_folder=f"{tiny_model}.off"
    )
    kept = []
    for each_model in (model, spread):
        with ActivationSteering(
            *(each_model, random(0, HIDDEN)),
            layer_indices=[0, 1],
            intervention_type="capping",
            floor=3.0,
        ) as steering:
            kept.append(streams(each_model)[1])
        assert steering.stats.fired > 0
    assert torch.allclose(*kept, atol=1e-5)


def test_nested_interventions_add_up(llama):
    vector = random(0, HIDDEN)
    [plain], _ = streams(llama, 1)
    with (
        ActivationSteering(llama, vector, layer_indices=1),
        ActivationSteering(llama, vector, layer_indices=1, coefficients=2),
    ):
        [both], _ = streams(llama, 1)
    assert torch.allclose(both[:, 1:], plain[:, 1:] + 3 * vector, atol=1e-5)


def test_hooks_come_off_whatever_happens(llama):
    steering = ActivationSteering(llama, random(0, HIDDEN), layer_indices=[0, 1])
    with pytest.raises(RuntimeError, match="inside"), steering:
        raise RuntimeError("inside")
    assert not any(block._forward_hooks for block in decoder_blocks(llama))
    assert not decoder(llama)._forward_pre_hooks
    with steering, pytest.raises(InterventionError, match="active already"), steering:
        pass
    assert not any(block._forward_hooks for block in decoder_blocks(llama))


def test_gradients_flow_through(llama):
    vector = random(0, HIDDEN)
    with ActivationSteering(llama, vector, layer_indices=1, intervention_type="capping", floor=0.5):
        embeddings = llama.get_input_embeddings()(IDS).detach().requires_grad_()
        llama(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().max() > 0


def test_bfloat16_model_is_capped_in_its_own_dtype(llama):
    model = build().bfloat16()
    vector = random(0, HIDDEN)
    with ActivationSteering(model, vector, layer_indices=1, intervention_type="capping", floor=4.0):
        [stream], logits = streams(model, 1)
    assert stream.dtype == logits.dtype == torch.bfloat16
    assert ((stream.float() @ (vector / vector.norm()))[:, 1:] > 4 - 0.1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steering_vectors": random(0, 31)}, r"found shape \[31\], \[32\] needed"),
        ({"steering_vectors": random(0, 2, 3, 4)}, r"found shape \[2, 3, 4\]"),
        ({"steering_vectors": []}, "none found"),
        ({"steering_vectors": torch.full((32,), float("nan"))}, "NaN or Inf"),
        ({"layer_indices": 4}, "layer 4: the model has 4 layers, 0 to 3"),
        ({"layer_indices": [0, 1, 2], "coefficients": [1, 2]}, "coefficients: found 2, 3 needed"),
        ({"intervention_type": "adding"}, "found 'adding'"),
        ({"positions": "first"}, "found 'first'"),
        ({"intervention_type": "capping"}, "found neither"),
        ({"intervention_type": "capping", "floor": 1, "cap_thresholds": 1}, "found both"),
        ({"floor": 1.0}, "floor: given, but intervention_type is 'addition'"),
        ({"intervention_type": "mean_ablation"}, "mean_activations: missing"),
        (
            {"steering_vectors": torch.zeros(32), "intervention_type": "capping", "floor": 1},
            "its length is 0",
        ),
    ],
)
def test_what_cannot_act_is_refused(llama, arguments, message):
    arguments = {"steering_vectors": random(0, HIDDEN), "layer_indices": 0} | arguments
    with pytest.raises(InterventionError, match=message):
        ActivationSteering(llama, **arguments)


def test_a_compiled_model_is_refused(llama):
    with pytest.raises(InterventionError, match="compiled"):
        ActivationSteering(torch.compile(llama), random(0, HIDDEN), layer_indices=0)


def test_an_unknown_architecture_can_name_its_blocks():
    model = build("gpt_neox")
    model.stack, model.gpt_neox.layers = model.gpt_neox.layers, None
    with pytest.raises(ModelError, match=r"model\.config\.decoder_blocks_path = 'path"):
        ActivationSteering(model, random(0, HIDDEN), layer_indices=0)
    model.config.decoder_blocks_path = "stack"
    assert ActivationSteering(model, random(0, HIDDEN), layer_indices=0).layers == [0]
    model.config.decoder_blocks_path = "stacks"
    with pytest.raises(ModelError, match="found under stacks"):
        decoder_blocks(model)
