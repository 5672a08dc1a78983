import warnings
from types import SimpleNamespace

import pytest
from transformers import AutoModelForImageTextToText

from trl_perception.assets import model_path
from trl_perception.modeling.activation_checkpointing import unify_checkpointing_names, without_checkpointing
from trl_perception.trainers import GRPOVideoConfig


@pytest.mark.parametrize("set_to", [True, False])
def test_the_older_name_sets_both_without_a_warning(set_to, tmp_path):
    options = {"use_reentrant": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = GRPOVideoConfig(
            str(tmp_path),
            gradient_checkpointing=set_to,
            gradient_checkpointing_kwargs=options,
            use_cpu=True,
            bf16=False,
        )
    assert config.gradient_checkpointing is set_to
    assert config.gradient_checkpointing_kwargs == options
    assert config.activation_checkpointing is set_to
    assert config.activation_checkpointing_kwargs == options


def test_the_newer_name_counts_before_the_older(tmp_path):
    config = GRPOVideoConfig(str(tmp_path), activation_checkpointing=False, use_cpu=True, bf16=False)
    assert config.activation_checkpointing is config.gradient_checkpointing is False  # TRL's default is True


def test_what_trl_writes_to_the_older_name_reaches_the_newer():
    old = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    config = SimpleNamespace(**old, activation_checkpointing=True, activation_checkpointing_kwargs=None)
    unify_checkpointing_names(config, to_new=False)
    assert config.activation_checkpointing_kwargs == {"use_reentrant": True}


def test_forwards_without_checkpointing_restore_each_layer():
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))

    def flags():
        return {
            name: layer.gradient_checkpointing
            for name, layer in model.named_modules()
            if hasattr(layer, "gradient_checkpointing")
        }

    for number, layer in enumerate(model.model.language_model.layers):
        layer.gradient_checkpointing = number % 2 == 0  # as every_n_layers: 2
    before = flags()
    assert set(before.values()) == {True, False}
    with warnings.catch_warnings(), without_checkpointing(model):
        warnings.simplefilter("error", FutureWarning)
        assert not any(flags().values())
    assert flags() == before
