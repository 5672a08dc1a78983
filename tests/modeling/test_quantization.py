"""QLoRA: a base in 4 or 8 bit with each trainer, which weights are quantised, and how its adapter is saved."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.helpers import history
from tests.trainers.reference import accuracy_reward, default_path, spread_reward, trained
from trl_perception.assets import model_path
from trl_perception.modeling import quantization as module
from trl_perception.modeling.adapters import require_mergeable
from trl_perception.modeling.quantization import describe_quantised, quantization_of_teacher
from trl_perception.train import build, main, parse
from trl_perception.trainers import TRAINERS

pytestmark = pytest.mark.slow  # `make test-slow` installs what they need
pytest.importorskip("bitsandbytes")

BITS = {"4bit": {"load_in_4bit": True, "load_in_8bit": False}, "8bit": {"load_in_4bit": False, "load_in_8bit": True}}
OPTIONS = {
    "appo": {"tokens_per_frame": 3, "top_frames": 2, "accuracy_reward": "accuracy_reward"},
    "ral": {"num_iterations": 2},
}
RECIPE = [
    *("--config", "grpo/tiny", "--use_cpu", "true", "--max_steps", "1", "--synthetic", '{"size": 16}'),
    *("--per_device_train_batch_size", "16", "--disable_tqdm", "true", "--warmup_steps", "0", "--report_to", "none"),
]
QLORA = ["--use_peft", "true", "--load_in_4bit", "true", "--lora_r", "4", "--lora_target_modules", "q_proj"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path_factory.getbasetemp() / "clips"))


def quantised(make_trainer, rows, name, bits, lora=None, **config):
    extra = {
        "peft_config": lora or LoraConfig(r=4, target_modules="all-linear"),
        "quantization_config": quantization_of_teacher(**BITS[bits], dtype=torch.float32),
    }
    settings = {"beta": 0.1, "max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
    settings.update({"group_forward": "on", **OPTIONS.get(name, {}), **config})
    return make_trainer(rows, TRAINERS[name], reward=[accuracy_reward, spread_reward], extra=extra, **settings)


@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, bits) for name in TRAINERS for bits in BITS],
)
def test_an_adapter_trains_on_a_quantised_base(rows, make_trainer, name, bits):
    trainer = quantised(make_trainer, rows["mixed"], name, bits)
    assert trainer._forwards.packs
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
    trained(trainer)
    changed = {key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])}
    # q, k, v, o, gate, up, down of 4 layers; qkv, proj, gate, up, down of 2 blocks; 2 of the merger; A and B of each
    assert len(changed) == 2 * (7 * 4 + 5 * 2 + 2)
    assert all("lora_" in key for key in changed)
    for metric in ("loss", "grad_norm"):
        assert torch.tensor(history(trainer, metric)[0]).isfinite().all()
    assert all(norm > 0 for norm in history(trainer, "grad_norm")[0])
    if bits == "4bit":  # 28 language layers; neither tower nor merger nor head
        assert describe_quantised(trainer.model).startswith("28 language layers in 4 bit; vision tower, merger")


@pytest.mark.parametrize("bits", BITS)
def test_a_teacher_is_quantised_and_still_teaches(rows, make_trainer, bits):
    config = {f"teacher_{key}": value for key, value in BITS[bits].items()}
    config.update({"teacher_model_name_or_path": default_path(make_trainer), "max_steps": 1})
    trainer = trained(make_trainer(rows["video"], TRAINERS["attn_distill"], reward=spread_reward, **config))
    assert describe_quantised(trainer.teacher).startswith(f"28 language layers in {bits[0]} bit; vision tower")
    assert describe_quantised(trainer.model) is None
    said, looked = history(trainer, "attn_distill/gkd", "attn_distill/jsd")
    assert 0 < said[0] < 0.5  # the student itself, rounded
    assert 0 < looked[0] < 0.1


def test_a_quantised_run_resumes_in_its_type(rows, make_trainer, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "generation_kwargs": {"do_sample": False}}
    whole, again = (quantised(make_trainer, rows["video"] * 4, "grpo", "4bit", **settings) for _ in range(2))
    trained(whole)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert {p.dtype for p in again.model.parameters() if p.requires_grad} == {torch.bfloat16}
    for metric in ("loss", "kl"):
        ours, theirs = history(again, metric)[0], history(whole, metric)[0]
        assert ours[2:] == pytest.approx(theirs[2:], rel=1e-4, abs=1e-7)
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    assert len(saved) == 80
    assert all(
        torch.equal(value, whole.model.state_dict()[name.replace(".weight", ".default.weight")])
        for name, value in saved.items()
    )


def test_a_recipe_reaches_the_model_and_says_what_is_quantised(tmp_path, capsys):
    args = [*RECIPE, *QLORA, "--freeze_vision_tower", "true", "--merge_adapter", "true", "--output_dir", str(tmp_path)]
    main(args)
    said = capsys.readouterr().out
    # rank 4 on q_proj, 128 to 128, of 4 layers: 4 * 4 * (128 + 128) = 4,096, on top of 1,184,192 of the base
    assert "tiny; 28 language layers in 4 bit; vision tower, merger and head" in said
    assert "1,188,288, 4,096 trained" in said
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert describe_quantised(merged) is None
    assert not getattr(merged.config, "quantization_config", None)
    base = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantised_settings_are_refused_with_a_reason(tmp_path, monkeypatch, bits):
    base = [*RECIPE, f"--{bits}", "true", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=f"{bits} is set without an adapter.* Set use_peft: true, or unset {bits}"):
        build(*parse(base))
    on_a_cpu = {
        "load_in_4bit": (["--eval_strategy", "steps", "--eval_steps", "1"], "passes no gradient there"),
        "load_in_8bit": (["--use_dora", "true"], "Set load_in_4bit, use_dora=False"),
    }
    refused, message = on_a_cpu[bits]
    with pytest.raises(ValueError, match=message):
        build(*parse([*base, "--use_peft", "true", "--lora_target_modules", "q_proj", *refused]))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"{bits} needs bitsandbytes.*pip install 'trl_perception\[quant\]'"):
        build(*parse([*base, "--use_peft", "true"]))
    with pytest.raises(ImportError, match="teacher_load_in_8bit needs bitsandbytes"):
        quantization_of_teacher(**BITS["8bit"], dtype=torch.float32)


def test_the_type_of_computation_is_that_of_the_weights(tmp_path):
    def asked(*args):
        _, _, model = parse([*RECIPE, *QLORA, "--output_dir", str(tmp_path), *args])
        model.model_name_or_path = model_path(model.model_name_or_path)
        return module.quantization_of(model)

    assert asked("--dtype", "bfloat16").bnb_4bit_compute_dtype == torch.bfloat16
    assert asked("--dtype", "auto").bnb_4bit_compute_dtype == torch.float32  # as the tiny model was saved
    nested = asked("--use_bnb_nested_quant", "true", "--bnb_4bit_quant_type", "fp4")
    assert (nested.bnb_4bit_use_double_quant, nested.bnb_4bit_quant_type) == (True, "fp4")


def test_tied_embeddings_are_not_merged_apart():
    base = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    own_head = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    require_mergeable(own_head)
    base.config.tie_word_embeddings = True
    with pytest.raises(ValueError, match="the adapter has its own lm_head, and the base ties embeddings and head"):
        require_mergeable(own_head)
