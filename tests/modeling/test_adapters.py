"""LoRA and similar adapters on language and vision layers: the same numbers on every path, and only the adapter changes."""

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForImageTextToText
from trl import ModelConfig

from tests.helpers import every_method, history
from tests.trainers.reference import build, default_path, shaken, spread_reward, trained
from trl_perception import train
from trl_perception.assets import from_pretrained, model_path
from trl_perception.evaluation.model import load_model
from trl_perception.evaluation.settings import EvaluationSettings
from trl_perception.hub import merge_adapter
from trl_perception.modeling import adapted_modules, feature_reuse_unsupported_reason
from trl_perception.modeling.adapters import adapter_of
from trl_perception.modeling.freezing import part_of
from trl_perception.recipe import recipe_path
from trl_perception.trainers import TRAINERS, RALTrainer

FAST = {"group_forward": "on", "shared_prefill": True, "reuse_vision_features": True}
PLAIN = {"group_forward": "off", "shared_prefill": False, "reuse_vision_features": False}

OPTIONS = every_method(
    appo={"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"},
    pgpo={"dependency_threshold": 0.2},
    ral={"num_iterations": 2},
    attn_distill={"gkd_weight": 0.5},  # without a teacher: the base of the adapter is the teacher
)
LAYERS = {
    "language": r".*language_model.*(q_proj|v_proj|down_proj)",
    "tower": r".*visual\.blocks.*(qkv|down_proj)",
    "merger": r".*visual\.merger\.mlp\.[02]",
    "vision": r".*visual\.(blocks.*(qkv|proj)|merger\.mlp\.[02])",
    "all": "all-linear",
}
KINDS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
FIRST = [  # in every run of the tests; the others are slow
    ("grpo", "all", "dora"),
    ("appo", "vision", "lora"),
    ("pgpo", "all", "rslora"),
    ("ktr", "merger", "lora"),
    ("ral", "language", "lora"),
    ("attn_distill", "vision", "rslora"),
]
EVERY = [(name, layers, kind) for name in TRAINERS for layers in LAYERS for kind in KINDS]
# Merger and language model under an adapter leave the tower as it was: its features are computed once.
TOWER_STAYS = ("language", "merger")


def lora(layers="language", kind="lora", **settings):
    return LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS[layers], **KINDS[kind], **settings)


def run(make_trainer, rows, name, config, **settings):
    defaults = {
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "beta": 0.1,
    }
    cls = TRAINERS.get(name, name)
    return build(
        make_trainer, rows, cls, **{**defaults, **OPTIONS.get(name, {}), **settings}, extra={"peft_config": config}
    )


def adapters(trainer):
    return {name for name, parameter in trainer.model.named_parameters() if "lora_" in name}


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def changed(trainer, before):
    return {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("name", "layers", "kind"),
    [*FIRST, *(pytest.param(*of, marks=pytest.mark.slow) for of in EVERY if of not in FIRST)],
)
def test_fast_paths_give_an_adapter_the_same_gradients(rows, make_trainer, name, layers, kind):
    trainers = []
    far = layers == "tower" and name in ("ral", "attn_distill")  # from the attention that penalties read
    rate = {"learning_rate": 5.0} if far else {}
    for paths in (FAST, PLAIN):
        trainer = run(make_trainer, rows["mixed"], name, lora(layers, kind), **paths, **rate)
        before, kept = weights(trainer), keep_credit(trainer)
        trainers.append(trained(trainer))
        assert changed(trainer, before) == adapters(trainer)  # each of them, and nothing else
    fast, plain = trainers
    assert fast._forwards.packs
    assert fast._reuses_features == (layers in TOWER_STAYS)
    assert len(fast.seen) == len(plain.seen) > 1
    for ours, theirs in zip(fast.seen, plain.seen, strict=True):
        assert torch.equal(ours.inputs["completion_ids"], theirs.inputs["completion_ids"])
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4, abs=1e-5)
        assert ours.gradients.keys() == theirs.gradients.keys() == adapters(fast)
        flat = [torch.cat([seen.gradients[key].flatten() for key in theirs.gradients]) for seen in (ours, theirs)]
        assert (flat[0] - flat[1]).norm() < 1e-4 * flat[1].norm() + 1e-7
        assert flat[1].norm() > 1e-4
    assert_credit(plain, kept)


def keep_credit(trainer):
    """Record the weights that the trainer's method gives from now on."""
    kept, body = [], trainer.token_weights

    def token_weights(group):
        credit = body(group)
        kept.append((credit, group))
        return credit

    trainer.token_weights = token_weights
    return kept


def assert_credit(trainer, kept):
    """Weights differ between tokens at the last update, when the adapter is no longer zero; penalties are active."""
    assert len(kept) >= 3  # one prompt with its completions, or two, in each of three steps
    credit, group = kept[-1]
    if credit is not None:
        given = credit.weights[group.completion_mask.bool()]
        assert given.isfinite().all()
        assert given.std() > 1e-3
    elif trainer.penalties[-1] is not None:
        assert torch.tensor(trainer.penalties).isfinite().all()
        assert max(map(abs, trainer.penalties)) > 1e-7
    else:
        assert trainer.method in ("grpo", "t_grpo")  # whose credit is the reward


def test_the_reference_is_the_base_on_every_path(rows, make_trainer):
    """KL against the adapter switched off, when tower, merger and language layers have moved."""
    base = make_trainer(rows["video"], model=shaken(default_path(make_trainer)), max_steps=1)
    for paths in (FAST, PLAIN):
        trainer = run(make_trainer, rows["video"], "grpo", lora("all"), **paths, per_device_train_batch_size=4)
        trained(trainer)
        reference, group = trainer.seen[-1].inputs["ref_per_token_logps"], trainer.groups[-1]
        mask = group.completion_mask
        with torch.no_grad():
            expected, now = base.score(group)[0], trainer.score(group)[0]
        torch.testing.assert_close(reference[mask], expected[mask], atol=2e-5, rtol=1e-4)
        assert (now - expected)[mask].abs().max() > 1e-3  # and the policy differs


@pytest.mark.slow
def test_checkpointing_moves_an_adapter_alike(rows, make_trainer):
    """Also on vision layers, whose input has no gradient of its own; RAL and distillation refuse the reentrant kind."""
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    moved = []
    for checkpointing in ({"gradient_checkpointing": False}, {"gradient_checkpointing": True}, reentrant):
        config = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, **checkpointing}
        trainer = make_trainer(
            rows["several"], TRAINERS["pgpo"], reward=spread_reward, extra={"peft_config": lora("vision")}, **config
        )
        before = weights(trainer)
        trained(trainer)
        assert changed(trainer, before) == adapters(trainer)
        moved.append({name: trainer.model.get_parameter(name) - before[name] for name in adapters(trainer)})
    for other in moved[1:]:
        for name, step in moved[0].items():
            assert (other[name] - step).norm() < 1e-3 * step.norm() + 1e-9
    for name in ("ral", "attn_distill"):
        with pytest.raises(ValueError, match="reentrant"):
            run(make_trainer, rows["video"], name, lora(), **reentrant)


def test_an_adapter_stays_out_of_frozen_parts(rows, make_trainer):
    settings = {"freeze_vision_tower": True, "max_steps": 2, **FAST}
    trainer = run(make_trainer, rows["video"], "grpo", lora("all", exclude_modules=["gate_proj"]), **settings)
    assert trainer._reuses_features
    assert not any("visual.blocks" in name or "gate_proj" in name for name in adapters(trainer))
    assert any("merger" in name for name in adapters(trainer))
    trained(trainer)  # with beta > 0: switching the adapter on again makes nothing else trainable
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == adapters(trainer)
    both = run(make_trainer, rows["video"], "grpo", lora("all"), **settings, freeze_merger=True)
    assert not any("visual" in name for name in adapters(both))
    with pytest.raises(ValueError, match=r"No layer is left for the adapter: freeze_vision_tower keeps it out"):
        run(make_trainer, rows["video"], "grpo", lora("tower"), **settings)
    with pytest.raises(ValueError, match=r"modules_to_save has merger, and freeze_merger takes the vision merger out"):
        run(make_trainer, rows["video"], "grpo", lora(modules_to_save=["merger"]), freeze_merger=True)


def test_a_model_that_came_with_an_adapter_in_a_frozen_part_is_refused(rows, make_trainer):
    adapted = get_peft_model(shaken(default_path(make_trainer)), lora("all"))
    with pytest.raises(
        ValueError, match=r"adapter has 10 layers in the vision tower .*freeze_vision_tower is set. Merge"
    ):
        make_trainer(rows["video"], model=adapted, freeze_vision_tower=True)


@pytest.mark.parametrize("layers", LAYERS)
def test_features_are_kept_only_of_a_tower_without_adapter(layers):
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    adapted = get_peft_model(model, lora(layers)).requires_grad_(False)  # frozen or not, it can be switched off
    reason = feature_reuse_unsupported_reason(adapted)
    assert (reason is None) == (layers in TOWER_STAYS)
    assert reason is None or "modules of the vision tower" in reason


def test_scoring_forwards_have_no_dropout(rows, make_trainer):
    """With lora_dropout two scoring forwards of a view are equal; the update's forward, which has dropout, is not reused."""
    settings = {"max_steps": 2, "num_generations": 4}
    trainer = run(make_trainer, rows["video"], "pgpo", lora(lora_dropout=0.5), **settings)
    assert trainer._drops_out
    kept = keep_credit(trainer)
    trained(trainer)
    group = kept[-1][1]
    first, second = (trainer.score(group)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert trainer.model.training
    quiet = run(make_trainer, rows["video"], "pgpo", lora(), **settings)
    quiet.model.load_state_dict(trainer.model.state_dict())
    torch.testing.assert_close(quiet.score(group)[0], first, atol=1e-5, rtol=1e-5)
    assert "token_weights" in trainer.seen[-1].inputs  # given after the rollout, not in the update's forward


def test_what_does_not_go_with_media_is_refused(rows, make_trainer):
    for config, message in (
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING puts virtual tokens before"),
        (lora(alora_invocation_tokens=[5]), "alora_invocation_tokens switches the adapter on"),
        (LoraConfig(target_modules=["lm_head"], r=2), "lm_head"),
        (lora(bias="all"), r"KL term \(beta above 0\) reads the base .* bias='all' trains biases of the base"),
        (
            lora(init_lora_weights="pissa"),
            r"init_lora_weights='pissa' rewrites the base, .* Set init_lora_weights=True",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(make_trainer, rows["video"], "grpo", copy.deepcopy(config))
    settings = {"beta": 0.0, "num_iterations": 2}
    with pytest.raises(ValueError, match="attn_reference='ref' reads the base"):
        run(make_trainer, rows["video"], RALTrainer, lora(bias="all"), attn_reference="ref", **settings)
    with pytest.raises(ValueError, match="distillation, without another teacher, reads the base"):
        run(make_trainer, rows["video"], "attn_distill", lora(bias="all"), beta=0.0)
    run(make_trainer, rows["video"], "grpo", lora(bias="all"), beta=0.0)  # the base is not used


def test_an_adapter_without_layers_names_the_setting(rows, make_trainer):
    with pytest.raises(ValueError, match=r"The adapter names no layers.* Set lora_target_modules"):
        run(make_trainer, rows["video"], "grpo", LoraConfig(r=2))


def test_an_adapter_is_no_model_to_begin_with(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "tiny"}')
    arguments = ["--config", "grpo/tiny", "--model_name_or_path", str(tmp_path), "--use_cpu", "true"]
    with pytest.raises(ValueError, match="holds an adapter, and training begins from whole weights"):
        train.build(*train.parse(arguments))


def test_whole_weights_and_an_adapter_do_not_share_a_folder(rows, make_trainer, tmp_path):
    """A loader uses any adapter it finds, and would ignore the full weights of a later run in the same folder."""
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    adapter = run(make_trainer, rows["video"], "grpo", lora(), **settings)
    adapter.train()
    adapter.save_model()
    whole = make_trainer(rows["video"], **settings)
    with pytest.raises(ValueError, match=r"holds the adapter of another run .* Set output_dir to another folder"):
        whole.train()
    whole = make_trainer(rows["video"], output_dir=str(tmp_path / "whole"), **settings)
    with pytest.raises(ValueError, match=r"saved with an adapter, and this run trains whole weights\. Set use_peft"):
        whole.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    whole.train()
    with pytest.raises(ValueError, match=r"saved with whole weights, and this run trains an adapter\. Set use_peft"):
        adapter.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))


def test_other_adapters_on_layers_train(rows, make_trainer):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(rows["video"], extra={"peft_config": config}, beta=0.1, max_steps=2, learning_rate=0.05)
    before = weights(trainer)
    trained(trainer)
    assert changed(trainer, before) == {name for name in before if "ia3_" in name}
    assert not trainer._reuses_features  # down_proj is in the tower too


@pytest.mark.parametrize("kind", ["dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lora", "rslora"))])
def test_an_adapter_resumes_where_it_was(rows, make_trainer, tmp_path, kind):
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    greedy = {"generation_kwargs": {"do_sample": False}}
    whole, again = (
        run(make_trainer, rows["video"] * 4, "grpo", lora("all", kind), **settings, **greedy) for _ in range(2)
    )
    trained(whole)
    saved = tmp_path / "run" / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").is_file()
    assert not list(saved.glob("adapter_model.bin"))
    again.train(resume_from_checkpoint=str(saved))
    first, second = (history(trainer, "loss", "kl", "grad_norm") for trainer in (whole, again))
    for mine, theirs in zip(first, second, strict=True):
        assert len(mine) == 4
        assert theirs[2:] == pytest.approx(mine[2:], rel=1e-4, abs=1e-7)
    for name, value in weights(whole).items():
        torch.testing.assert_close(again.model.get_parameter(name), value, atol=1e-6, rtol=1e-5)
    assert first[1][-1] > 1e-4  # the adapter was moved away from its base


@pytest.mark.parametrize("kind", ["dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lora", "rslora"))])
def test_an_adapters_folder_loads_as_the_policy_that_was_trained(rows, make_trainer, tmp_path, kind):
    trainer = make_trainer(
        rows["video"],
        reward=spread_reward,
        extra={"peft_config": lora("all", kind)},
        max_steps=2,
        learning_rate=0.05,
        freeze_vision_tower=True,
    )
    trained(trainer).save_model(str(tmp_path / "saved"))
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        plain = from_pretrained("tiny")[0](input_ids=ids).logits
        loaded, processor = from_pretrained(str(tmp_path / "saved"))  # what `trl-perception ask` loads
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        evaluated, _ = load_model(
            EvaluationSettings(model=str(tmp_path / "saved"), data="synthetic", output=str(tmp_path / "eval")),
            torch.device("cpu"),
        )
        torch.testing.assert_close(evaluated(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        merge_adapter(tmp_path / "saved", model_path("tiny"))
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    assert processor.tokenizer.get_vocab() == trainer.processing_class.tokenizer.get_vocab()


def adapted_parts(trainer):
    """The parts of the model that the adapter reaches."""
    names = adapted_modules(trainer.model)
    return {part_of(name) or "language" for name in names}


def test_the_snippets_of_the_page_find_their_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "clips"))
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    snippets = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    reached = []
    for snippet in snippets:
        settings = yaml.safe_load(snippet)
        settings.pop("load_in_4bit", None)  # tests/trainers/test_quantised.py
        base = yaml.safe_load(recipe_path("grpo/tiny").read_text())
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**base, **settings, "output_dir": str(tmp_path / "run"), "bf16": False}))
        trainer = train.build(
            *train.parse(["--config", str(recipe), "--use_cpu", "true", "--synthetic", '{"size": 8}'])
        )
        reached.append(adapted_parts(trainer))
    assert reached == [{"language"}, {"tower", "merger"}, {"language", "merger"}]


def test_a_single_target_is_a_name():
    # TRL unpacks a list of one; as a pattern, "q_proj" would have to be a whole name
    assert adapter_of(ModelConfig(use_peft=True, lora_target_modules=["q_proj"])).target_modules == {"q_proj"}
    for pattern in ("all-linear", r".*language_model.*q_proj"):
        assert adapter_of(ModelConfig(use_peft=True, lora_target_modules=[pattern])).target_modules == pattern
    assert adapter_of(ModelConfig()) is None
