"""Hybrid models: packed rows whose linear attention layers start every completion from the state of the prompt."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    OlmoHybridConfig,
    OlmoHybridForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.models.qwen3_5 import modeling_qwen3_5
from trl.trainer.utils import add_fused_lm_head

from tests.families.parts import randomized
from tests.families.test_fast_paths import HYBRID, WIDTH, batch, prompts_of
from tests.families.tiny import SLOW, tiny
from tests.trainers.reference import accuracy_reward, recorded, spread_reward, trained
from trl_perception.modeling import (
    AttentionTap,
    HiddenTap,
    attention_rows,
    group_forward,
    packing_unsupported_reason,
    row_forward,
)
from trl_perception.modeling.packed_linear_attention import PrefixState
from trl_perception.trainers import TRAINERS

RUNS = [3, 2, 2, 1]
EARLIER = slice(-WIDTH - 1, -1)  # positions that predict completions


def fused(model):
    add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
    return model.train()


def hybrid():
    family = tiny("qwen3_5")
    return family, fused(family.model)


def forward(model, packed, inputs, visuals, runs, **more):
    """One of the two paths; `visuals` are None for a text model."""
    common = {"completion_width": WIDTH, "fused_lm_head": True, **inputs, **more}
    if packed:
        firsts = [None if visuals is None else visuals[sum(runs[:number])] for number in range(len(runs))]
        return group_forward(model, runs=runs, visuals=firsts, **common)
    if visuals is None:
        common.pop("completion_width")
        return model(**common)
    return row_forward(model, visuals=visuals, **common)


def learned(model, inputs, visuals, runs):
    """(log-probs, entropies, gradients) of the plain and of the packed path."""
    found = []
    weights = torch.randn(len(inputs["labels"]), WIDTH, generator=torch.Generator().manual_seed(5))
    for packed in (False, True):
        model.zero_grad()
        output = forward(model, packed, inputs, visuals, runs)
        logps, entropy = output.log_probs[:, -WIDTH:], output.entropy[:, -WIDTH:]
        ((logps + 0.1 * entropy) * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((logps.detach(), entropy.detach(), gradients))
    return found


def assert_alike(plain, packed, gradient=1e-4):
    for ours, theirs in zip(packed[:2], plain[:2], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert packed[2].keys() == plain[2].keys()
    largest = max(value.norm() for value in plain[2].values())
    for name, value in plain[2].items():
        assert (packed[2][name] - value).norm() <= gradient * max(value.norm(), 1e-3 * largest), name


def tokens(prompts, lengths):
    """Rows of text prompts (lists of ids) with as many completions each as `lengths` has."""
    width = max(map(len, prompts))
    ids, mask = [], []
    for prompt, of_prompt in zip(prompts, lengths, strict=True):
        for length in of_prompt:
            ids.append([0] * (width - len(prompt)) + prompt + list(range(30 + len(ids), 30 + len(ids) + WIDTH)))
            mask.append([0] * (width - len(prompt)) + [1] * (len(prompt) + length) + [0] * (WIDTH - length))
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-WIDTH] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, [len(of_prompt) for of_prompt in lengths]


def test_in_float64_log_probs_and_gradients_are_equal(monkeypatch):
    """Linear attention, norms and rotations cast to float32: these casts become float64 here."""
    wide = {**vars(torch), "float32": torch.float64, "float": torch.float64}
    monkeypatch.setattr(modeling_qwen3_5, "torch", SimpleNamespace(**wide))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    family, model = hybrid()
    model.double()
    inputs, visuals = batch(prompts_of(family), RUNS)
    labels = inputs["labels"][:, -WIDTH:]
    found = []
    for packed in (False, True):
        model.zero_grad()
        with HiddenTap(model, lambda states: states.at(EARLIER)) as tap:  # TRL's head computes in float32
            forward(model, packed, inputs, visuals, RUNS)
        logps = model.lm_head(tap.take()[0]).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        (logps * (labels != -100)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((logps[labels != -100].detach(), gradients))
    assert found[0][0].dtype == torch.float64
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-11, rtol=0)
    assert any(name.endswith("linear_attn.A_log") for name in found[0][1])
    for name, value in found[0][1].items():
        assert (found[1][1][name] - value).norm() <= 1e-10 * value.norm().clamp(min=1e-6), name


@pytest.mark.parametrize("states", ["conv", "recurrent"])
def test_deliberate_breaks_are_seen(monkeypatch, states):
    """Completions that lose a state of the prompt have other scores; a state without its graph gives other gradients."""
    family, model = hybrid()
    inputs, visuals = batch(prompts_of(family), RUNS)
    repeat = PrefixState.repeat
    plain, _ = learned(model, inputs, visuals, RUNS)
    monkeypatch.setattr(PrefixState, "repeat", lambda self, count: getattr(self, states).clear() or repeat(self, count))
    _, lost = learned(model, inputs, visuals, RUNS)
    assert (lost[0] - plain[0]).abs().max() > 1e-2

    def cut(self, count):
        setattr(self, states, {number: state.detach() for number, state in getattr(self, states).items()})
        repeat(self, count)

    monkeypatch.setattr(PrefixState, "repeat", cut)
    _, detached = learned(model, inputs, visuals, RUNS)
    torch.testing.assert_close(detached[0], plain[0], atol=1e-4, rtol=0)
    name = "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"
    assert (detached[2][name] - plain[2][name]).norm() > 1e-2 * plain[2][name].norm()


@pytest.mark.parametrize(
    ("prompts", "lengths"),
    [
        ([[11], [12, 13], [14, 15, 16]], [(3, 6), (1, 0), (2, 2)]),  # prefixes of 0, 1 and 2 tokens
        ([[11, 12, 13, 14, 15], [21, 22]], [(0, 0), (0, 0, 0)]),  # a token alone behind each state
        ([list(range(20, 150))], [(6, 6, 6)]),  # three chunks of 64
    ],
    ids=["short prompts", "empty completions", "chunks"],
)
def test_lengths(prompts, lengths):
    _, model = hybrid()
    inputs, runs = tokens(prompts, lengths)
    plain, packed = learned(model, inputs, None, runs)
    assert_alike(plain, packed)
    with HiddenTap(model, lambda states: states.at(EARLIER)) as tap:
        for which in (False, True):
            forward(model, which, inputs, None, runs)
    seen = inputs["attention_mask"][:, EARLIER].bool()
    states = [values[seen] for values in tap.take()]
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)
    parameters = [p for name, p in model.named_parameters() if "linear_attn" in name]
    gradients = [torch.autograd.grad(of_path.square().sum(), parameters) for of_path in states]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    family, model = hybrid()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_alike(*learned(model, *batch(prompts_of(family), RUNS), RUNS))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters(checkpointing):
    family, model = hybrid()
    targets = ["in_proj_qkv", "in_proj_a", "out_proj", "q_proj", "v_proj", "up_proj"]
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(target_modules=targets, r=4, init_lora_weights=False))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    plain, packed = learned(model, *batch(prompts_of(family), RUNS), RUNS)
    assert any("linear_attn.in_proj_qkv.lora_A" in name for name in packed[2])
    assert_alike(plain, packed)


def test_bfloat16_stays_within_what_reordering_does():
    """Under autocast, packed rows are as close to float32 as padded rows are, for prompts of several chunks of 64 tokens.

    Autocast rounds the state at each end of a chunk, and the packed row has one more, after the prompt.
    """
    _, model = hybrid()
    ids = torch.randint(20, 250, (290,), generator=torch.Generator().manual_seed(0)).tolist()
    inputs, runs = tokens([ids[:150], ids[150:]], [(6, 6, 6, 6), (6, 3, 4, 5)])
    exact, _ = learned(model, inputs, None, runs)
    with torch.autocast("cpu", torch.bfloat16):
        plain, packed = learned(model, inputs, None, runs)

    def errors(found):
        flat, true = (torch.cat([of_one[2][name].flatten() for name in exact[2]]) for of_one in (found, exact))
        return (found[0] - exact[0]).abs().mean(), (flat - true).norm() / true.norm()

    for ours, theirs in zip(errors(packed), errors(plain), strict=True):
        assert 0 < ours < 1.5 * theirs


def test_scoring_without_gradient_in_eval_mode():
    family, model = hybrid()
    inputs, visuals = batch(prompts_of(family), RUNS)
    model.eval()
    with torch.no_grad():
        plain, packed = (forward(model, packed, inputs, visuals, RUNS) for packed in (False, True))
    torch.testing.assert_close(packed.log_probs, plain.log_probs[:, -WIDTH:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", HYBRID)
def test_taps_see_the_rows(name):
    family = tiny(name)
    model = fused(family.model)
    inputs, visuals = batch(prompts_of(family), RUNS)
    found = []
    for packed in (False, True):
        attention = AttentionTap(
            model, lambda layers, mask: (attention_rows(layers[-1], EARLIER, mask), mask), layers=2
        )
        hidden = HiddenTap(model, lambda states: states.at(EARLIER))
        with torch.no_grad(), attention, hidden:
            forward(model, packed, inputs, visuals, RUNS)
        found.append((*attention.results[0], hidden.results[0]))
    (plain, mask, states), (packed_rows, packed_mask, packed_states) = found
    seen = inputs["attention_mask"][:, EARLIER].bool()
    assert torch.equal(mask, packed_mask)
    torch.testing.assert_close(packed_rows[seen], plain[seen], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(packed_states[seen], states[seen], atol=1e-4, rtol=1e-3)


def test_positions_of_a_view():
    """Text tokens alone at the positions that they have with the media, as in the media-masked view."""
    _, model = hybrid()
    inputs, runs = tokens([[11, 12, 13, 14, 15]], [(6, 2, 4)])
    positions = torch.tensor([0, 1, 2, 9, 10, *range(11, 11 + WIDTH)]).expand(3, -1)
    with torch.no_grad():
        packed = forward(model, True, inputs, None, runs, positions=positions).log_probs
        plain = model(**inputs, position_ids=positions[:, None].expand(-1, 3, -1), fused_lm_head=True).log_probs[
            :, -WIDTH:
        ]
        usual = forward(model, True, inputs, None, runs).log_probs
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    assert (usual - plain).abs().max() > 1e-3


SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "head_dim": 8,
}


def qwen3_next():
    return Qwen3NextForCausalLM(Qwen3NextConfig(**SIZES, **LINEAR, **EXPERTS))


def olmo_hybrid():
    return OlmoHybridForCausalLM(OlmoHybridConfig(**SIZES, **LINEAR))


@pytest.mark.parametrize("build", [qwen3_next, olmo_hybrid])
def test_text_models(build):
    model = fused(randomized(build(), SLOW))
    assert packing_unsupported_reason(model) is None
    inputs, runs = tokens([[11, 12, 13, 14, 15, 16, 17], [21, 22, 23], [31]], [(6, 0, 3, 2), (1, 6, 4), (5, 2)])
    assert_alike(*learned(model, inputs, None, runs))


def test_other_layers_are_refused():
    """Short convolutions have a state, too, and no softmax attention."""
    config = {key: value for key, value in SIZES.items() if key != "rms_norm_eps"}
    model = Lfm2ForCausalLM(Lfm2Config(**config, layer_types=["conv", "full_attention"] * 2))
    assert packing_unsupported_reason(model).startswith("2 decoder layers have neither softmax self-attention nor")


METHODS = [
    "grpo",
    pytest.param("appo", marks=pytest.mark.slow),
    pytest.param("ral", marks=pytest.mark.slow),
    pytest.param("pgpo", marks=pytest.mark.slow),
    pytest.param("ktr", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_alike(rows, make_trainer, name):
    options = {
        "appo": {"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward", "attention_layers": 2},
        "ral": {"num_iterations": 2},
    }
    ends = []
    for mode in ("off", "on"):
        family = tiny("qwen3_5")
        trainer = make_trainer(
            rows["mixed"],
            cls=recorded(TRAINERS[name]),
            model=family.model,
            reward=[accuracy_reward, spread_reward],
            extra={"processing_class": family.processor},
            per_device_train_batch_size=8,
            max_steps=2,
            optim="sgd",
            learning_rate=1e-3,
            gradient_checkpointing=True,
            group_forward=mode,
            **options.get(name, {}),
        )
        assert trainer._forwards.packs == (mode == "on")
        start = {key: value.clone() for key, value in family.model.state_dict().items()}
        trained(trainer)
        ends.append((trainer.seen, family.model.state_dict()))
    (plain, plain_weights), (packed, packed_weights) = ends
    for ours, theirs in zip(packed, plain, strict=True):
        assert torch.equal(ours.inputs["completion_ids"], theirs.inputs["completion_ids"])
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3, abs=1e-5)
    moved, apart = (
        sum((weights[key] - plain_weights[key]).double().square().sum() for key in start) ** 0.5
        for weights in (start, packed_weights)
    )
    assert moved > 0
    assert apart <= 1e-3 * moved
