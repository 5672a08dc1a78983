"""Rollouts by a real server in a process of its own. The last tests end it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from tests.conftest import write_clip
from tests.engine.rollouts import (
    ENGINE,
    EXACT,
    GREEDY,
    after_update,
    engine_trainer,
    exact,
    largest_difference,
    rollout,
    saved,
    wide,
)
from tests.engine.served import START, Server, serving
from tests.engine.test_equality import FAMILIES
from tests.engine.test_weights import LORA
from tests.families.training import mixed
from tests.helpers import history
from tests.processes.launch import launch
from tests.processes.test_equality import SHARDED
from trl_perception.engine import client, generation

pytestmark = pytest.mark.timeout(3 * START)
FAMILY = "qwen2_5_vl"
# Of the models with experts one is served, that with linear attention.
SERVED = [name for name in FAMILIES if name != FAMILY and (not name.endswith("_moe") or name == "qwen3_5_moe")]
SERVED.remove("qwen3_5")
SERVED.remove("gemma4")
WEIGHTS = {
    "full": {},
    "adapter": LORA,
    "frozen tower": {"freeze_vision_tower": True, "freeze_merger": True},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(FAMILY, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def trainer_on(clips, pictures):
    """A trainer that samples by a server: rows of every kind, or those given."""

    def make(server: Server, rows=None, **config):
        rows = mixed(clips, pictures) if rows is None else rows
        return engine_trainer(FAMILY, server.folder, rows, **{**server.run, **config})

    return make


@pytest.mark.parametrize("name", WEIGHTS)
def test_log_probs_of_sampling_are_the_policys_before_and_after_an_update(name, server, trainer_on, monkeypatch):
    sent, made = [], client.packed
    monkeypatch.setattr(client, "packed", lambda given, sampling: sent.append(given) or made(given, sampling))
    trainer = trainer_on(server, **WEIGHTS[name])
    sent.clear()
    assert largest_difference(trainer, rollout(trainer)) < EXACT
    assert len(sent) == len(trainer.train_dataset)  # once a prompt, for two completions
    fields = {key for given in sent for items in given.get("mm_kwargs", {}).values() for item in items for key in item}
    frozen = name != "full"  # without weights that are trained in it, the tower runs in the trainer alone
    assert ("video_embeds" in fields, "pixel_values_videos" in fields) == (frozen, not frozen)
    assert largest_difference(trainer, after_update(trainer)) < EXACT
    assert list((server.folder / "weights").iterdir()) == []


@pytest.mark.parametrize("family", SERVED)
def test_every_family_is_sampled_by_a_server(family, tmp_path, clips, pictures):
    with serving(family, tmp_path) as server:
        trainer = engine_trainer(family, server.folder, mixed(clips, pictures), **server.run)
        assert largest_difference(trainer, rollout(trainer)) < exact(family)
        assert largest_difference(trainer, after_update(trainer)) < exact(family)


def test_greedy_tokens_are_those_of_generate(server, trainer_on):
    sampled = rollout(trainer_on(server, **GREEDY))
    wanted = rollout(trainer_on(server, use_vllm=False, generation_kwargs={"do_sample": False}))
    assert sampled["completion_ids"].tolist() == wanted["completion_ids"].tolist()


def test_a_run_trains_on_what_the_server_samples(server, trainer_on):
    trainer = trainer_on(server, max_steps=3)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    (differences,) = history(trainer, "sampling/sampling_logp_difference/max")
    assert len(differences) == 3
    assert largest_difference(trainer, rollout(trainer)) < EXACT


@pytest.mark.parametrize("rule", ["transformers", "released"])
def test_the_server_follows_the_runs_rule_of_positions(rule, server, trainer_on, tmp_path):
    """Whichever rule the run before had."""
    path = write_clip(tmp_path / "long.mp4", seed=9, frames=24, fps=2)
    rows = mixed([path], [], {"video": "v"})
    trainer = trainer_on(server, rows, position_rule=rule, video_max_frames=24)
    assert largest_difference(trainer, rollout(trainer)) < EXACT


def test_prompts_that_are_no_groups_are_sampled_one_by_one(server, trainer_on):
    trainer = trainer_on(server, generation_kwargs={"seed": 3}, temperature=2.0)
    engine, rows = trainer.vllm_generation, [0, 0, 0, 1, 1]  # a group of two, and one that ends within another
    engine.sync_weights()
    prompts = trainer.prompt_preparer([trainer.train_dataset[row] for row in range(2)])
    media = engine.media([prompts[row].visual for row in rows])
    ids, completions, logps, _ = engine.generate([prompts[row].input_ids for row in rows], media, 2)
    assert ids == [prompts[row].input_ids for row in rows]
    assert len(completions) == len(logps) == 5
    assert len({tuple(completion) for completion in completions[:3]}) == 3  # the seed is not theirs in common


def test_two_processes_sample_what_they_train_on(server, tmp_path, clips, pictures):
    run = {
        "kind": "engine.two_rollouts",
        "name": "differences",
        "family": FAMILY,
        "home": str(server.folder),
        "clips": clips,
        "pictures": pictures,
        "config": server.run,
    }
    for result in launch({"runs": [run]}, tmp_path / "job", 2, seconds=START):
        assert max(result["differences"]) < EXACT


def test_sharded_weights_are_sent(server, tmp_path, clips):
    run = {"kind": "engine.trained", "name": "run", "family": FAMILY, "home": str(server.folder), "lora": None}
    work = {"runs": [{**run, "clips": clips, "config": server.run}], "sharding": "fsdp2"}
    for result in launch(work, tmp_path / "job", 2, seconds=START, config=SHARDED["fsdp2"]):
        assert (result["run"]["as"], result["run"]["held"]) == ("FSDP", 0.5)
        assert result["run"]["difference"] < EXACT


DIFFERENT = {
    "dtype 'float32' instead of 'bfloat16'": {"dtype": "bfloat16"},
    "mm_device_do_normalize False instead of True": {"mm_device_do_normalize": True},
    "logprobs_mode 'processed_logprobs' instead of 'raw_logprobs'": {"logprobs_mode": "raw_logprobs"},
    "model '.*' instead of 'elsewhere'": {"model": "elsewhere"},
}


@pytest.mark.parametrize("message", DIFFERENT)
def test_a_server_with_other_settings_is_refused(message, server, trainer_on, monkeypatch):
    made = generation.server_options
    monkeypatch.setattr(generation, "server_options", lambda *args: {**made(*args), **DIFFERENT[message]})
    with pytest.raises(ValueError, match=rf"The server at {server.url} has {message}\. Start it by"):
        trainer_on(server)


def test_weights_of_another_run_stop_a_rollout(server, trainer_on):
    trainer = trainer_on(server)
    rollout(trainer)
    trainer_on(server).vllm_generation.sync_weights()
    with pytest.raises(RuntimeError, match=rf"The server at {server.url} got weights from another run"):
        rollout(trainer)


def test_a_late_answer_names_the_setting(server, trainer_on):
    trainer = trainer_on(server)
    rollout(trainer)
    trainer.vllm_generation.vllm_client.timeout = 1e-3
    with pytest.raises(RuntimeError, match=rf"{server.url}.* did not answer within vllm_server_timeout 0\.001 seconds"):
        rollout(trainer)


def test_other_tokens_than_the_prompts_stop_the_step(server, trainer_on, monkeypatch):
    trainer, made = trainer_on(server), client.engine_input
    monkeypatch.setattr(client, "engine_input", lambda ids, *args: made([*ids, ids[-1]], *args))
    with pytest.raises(RuntimeError, match=r"row 0 .*: the prompt has \d+ tokens, and the engine sampled from"):
        rollout(trainer)


def test_a_prompt_for_which_the_server_has_no_room_is_named(server, trainer_on):
    trainer = trainer_on(server)
    trainer.vllm_generation.vllm_client.limits = 8, 4096
    with pytest.raises(ValueError, match=r"row 0 .*: the prompt has \d+ tokens, .* vllm_max_model_length 8"):
        rollout(trainer)


def test_a_rollout_that_the_server_never_survives_is_given_up(server, trainer_on, monkeypatch):
    trainer, request, asked = trainer_on(server), client.MediaClient._request, []

    def fails(self, method, path, **options):
        if path != client.GENERATE:
            return request(self, method, path, **options)
        asked.append(path)
        raise client.ServerLostError("the engine died")

    monkeypatch.setattr(client.MediaClient, "_request", fails)
    with pytest.raises(ConnectionError, match="the engine died"):
        rollout(trainer)
    prompts = len(trainer.train_dataset)
    assert client.REPEATS + 1 <= len(asked) <= (client.REPEATS + 1) * prompts


def test_weights_between_gpus_need_gpus(server, trainer_on):
    with pytest.raises(ValueError, match=r"this run trains on cpu\. Set engine_weight_folder"):
        trainer_on(server, engine_weight_folder=None)


def test_a_server_that_another_command_started_is_refused(tmp_path, clips):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            found = {"/health": {}, "/v1/models": {"data": [{"id": "m"}]}}.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *args):
            pass

    saved(wide(FAMILY), tmp_path / "model")
    with HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        run = {**ENGINE, "vllm_mode": "server", "vllm_server_base_url": url, "engine_weight_folder": str(tmp_path)}
        with pytest.raises(ValueError, match=rf"The server at {url} takes no prompts with media"):
            engine_trainer(FAMILY, tmp_path, mixed(clips, [], {"video": "v"}), **run)
        other.shutdown()


def test_what_travels_is_what_an_engine_in_the_process_gets(tmp_path, clips, pictures):
    """Masks of placeholders with text between them too."""
    trainer = engine_trainer("qwen3_vl", tmp_path, mixed(clips, pictures), use_vllm=False)
    from trl_perception.engine.media import engine_input, engine_media, packed, unpacked
    from trl_perception.modeling import base_model
    from trl_perception.modeling.vision import family_of_model

    masks = 0
    for prompt in trainer.prompt_preparer(list(trainer.train_dataset)):
        (media,) = engine_media(
            family_of_model(trainer.model), base_model(trainer.model).model, [prompt.visual], "k", None
        )
        given = engine_input(prompt.input_ids, media, torch.bfloat16)
        found, sampling = unpacked(packed(given, {"n": 2, "logit_bias": {7: -100.0}}))
        assert sampling == {"n": 2, "logit_bias": {7: -100.0}}
        assert found.keys() == given.keys()
        assert found["prompt_token_ids"] == prompt.input_ids
        assert found.get("mm_hashes") == given.get("mm_hashes")
        for kind, items in given.get("mm_kwargs", {}).items():
            for ours, theirs in zip(items, found["mm_kwargs"][kind], strict=True):
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[name].data, theirs[name].data) for name in ours)
                assert all(ours[name].data.dtype == theirs[name].data.dtype for name in ours)
            for ours, theirs in zip(given["mm_placeholders"][kind], found["mm_placeholders"][kind], strict=True):
                assert (ours.offset, ours.length) == (theirs.offset, theirs.length)
                assert (ours.is_embed is None) == (theirs.is_embed is None)
                masks += ours.is_embed is not None and torch.equal(ours.is_embed, theirs.is_embed)
    assert masks == 2  # the rows with a video


def test_a_server_that_is_killed_in_a_rollout_and_started_again_loses_nothing(server, trainer_on, monkeypatch):
    trainer = trainer_on(server)
    rollout(trainer)
    made, calls = client.packed, []

    def kills(given, sampling):
        calls.append(given)
        if len(calls) == 3:
            server.kill()
            server.start()
        return made(given, sampling)

    monkeypatch.setattr(client, "packed", kills)
    assert largest_difference(trainer, after_update(trainer)) < EXACT
    assert len(calls) == 2 * len(trainer.train_dataset)
    assert largest_difference(trainer, after_update(trainer)) < EXACT


def test_a_server_that_ends_for_good_is_one_error(server, trainer_on):
    trainer = trainer_on(server)
    server.kill()
    trainer.vllm_generation.vllm_client.timeout = 1.0
    with pytest.raises(
        ConnectionError, match=rf"No server answers at {server.url} within vllm_server_timeout 1 seconds"
    ):
        rollout(trainer)
