"""From imported weights to a policy: import, pre-train, fine-tune, load, act. And what does not fit is refused."""

import json
import pickle
import shutil

import lwm_files as lwm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_in import StandIn
from test_pretrain import write_labels

from vipra_ros import cli
from vipra_ros.config import ConfigError
from vipra_ros.learning import finetune, pretrain, tokenise
from vipra_ros.learning.import_lwm import main
from vipra_ros.learning.lwm_folder import LWMFolder, sha256
from vipra_ros.learning.vq import load_vq
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.pretrained import Pretrained

spm = pytest.importorskip("sentencepiece")

CODES, TEXT = 24, 388
TRUNK = {"width": 16, "layers": 2, "heads": 2, "ffn": 24, "rope_theta": 5e7, "max_positions": 4096}
LOOP = "loop: {steps: 2, batch: 2, lr: 0.01, warmup_steps: 0, schedule: constant, bf16: false}"
PRESET = f"holdout: 0.3\nevaluate_on: 4\n{LOOP}\npolicy: {{backbone: {json.dumps(TRUNK)}}}\n"


def bring(folder, flat, tree):
    """Import a stream, a VQGAN and a vocabulary of 380 pieces."""
    folder.mkdir()
    words = "the red blue dot go to cube robot should take action what".split()
    lines = [f"{a} {b} {c}." for a in words for b in words for c in words] + ["USER: you are 0123456789 `x`"] * 20
    (folder / "text").write_text("\n".join(lines))
    spm.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=380, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        minloglevel=2, num_threads=1)
    lwm.write_stream(folder / "params", flat)
    (folder / "vqgan").write_bytes(pickle.dumps({"params": tree}))
    main(str(folder), str(folder / "lwm"), heads=2, codebook_size=CODES)
    return folder / "lwm"


@pytest.fixture(scope="module")
def flat():
    return lwm.make_llama(text=TEXT, vision=32)


@pytest.fixture(scope="module")
def imported(flat, tmp_path_factory):
    tree = lwm.make_vqgan(widths=(32,) * 5, codes=CODES)
    return bring(tmp_path_factory.mktemp("lwm") / "files", flat, tree)


@pytest.fixture(scope="module")
def small():
    return StandIn(episodes=4, length=5)


@pytest.fixture(scope="module")
def pretrained(imported, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pre")
    write_labels(folder / "labels", small)
    (folder / "micro.yaml").write_text(PRESET)
    pretrain.train(small, folder / "labels", folder / "run", folder / "micro.yaml", init=imported)
    return folder


@pytest.fixture
def captured(monkeypatch):
    """Jobs of trainings that are not run."""
    jobs = []
    for module in (pretrain, finetune):
        monkeypatch.setattr(module, "run", lambda job, *_: jobs.append(job))
    return jobs


def same(mine, theirs):
    return all(torch.equal(mine[k], theirs[k][: len(mine[k])]) for k in mine.keys() & theirs.keys())


def act(folder, data):
    """One sampled chunk of a checkpoint."""
    frames = np.stack([image for _, image in data.frames("front", 0, 2)])
    policy = load_engine(Checkpoint.load(folder))
    return policy.infer(Observation(0.0, {"front": frames}, data.episodes[0].task, None), seed=3).actions


def test_pretraining_begins_with_the_imported_weights(imported, flat, pretrained, small, captured):
    pretrain.train(small, pretrained / "labels", pretrained / "x", pretrained / "micro.yaml", init=imported)
    model = captured[0].model
    mine = model.state_dict()
    theirs = load_file(imported / "policy.safetensors") | load_file(imported / "heads.safetensors")
    assert mine.keys() - theirs.keys() == {"latent.weight", "latent_head.weight"} and same(mine, theirs)
    # The same function, too: logits of both heads equal those of an independent forward pass.
    ids, codes = np.array([1, 7, 30, 5]), np.array([3, 0, 23, CODES])
    x = np.concatenate([flat["transformer/wte/embedding"][ids], flat["transformer/vte/embedding"][codes]])
    expected = lwm.llama(flat, x, heads=2)
    with torch.inference_mode():
        hidden = model.hidden(torch.from_numpy(x)[None], torch.ones(1, 8, dtype=torch.bool), 0)
        text, vision = model.text_head(hidden)[0].numpy(), model.vision_logits(hidden)[0, :, 0].numpy()
    assert np.abs(text - expected @ flat["lm_head/kernel"]).max() < 2e-5
    assert np.abs(vision - expected @ flat["vision_head/kernel"][:, : CODES + 2]).max() < 2e-5


def test_from_import_to_a_sampled_chunk(imported, pretrained, small, tmp_path):
    start = pretrained / "run" / "checkpoint"
    made = Pretrained.load(start)
    assert made.config.started_from == sha256(imported / "manifest.json")
    assert tokenise.quantiser_hash(made.vq) == tokenise.quantiser_hash(load_vq(imported))
    assert made.config.joint.policy.text_vocab == TEXT and made.tokenizer.get_vocab_size() == 380
    assert not same(made.model.state_dict(), load_file(imported / "policy.safetensors"))  # it was trained
    (tmp_path / "ft.yaml").write_text(PRESET)
    finetune.train(small, tmp_path / "ft", tmp_path / "ft.yaml", start)
    chunk = act(tmp_path / "ft" / "checkpoint", small)
    assert chunk.shape == (14, 8) and np.isfinite(chunk).all()
    for folder in (start, tmp_path / "ft" / "checkpoint"):
        assert "Llama 2" in (folder / "LICENCE.txt").read_text()


def test_an_older_folder_without_the_origin_loads(pretrained, tmp_path):
    shutil.copytree(pretrained / "run" / "checkpoint", tmp_path / "old")
    said = json.loads((tmp_path / "old" / "pretrain.json").read_text())
    del said["started_from"]
    (tmp_path / "old" / "pretrain.json").write_text(json.dumps(said))
    assert Pretrained.load(tmp_path / "old").config.started_from == ""


def test_a_run_does_not_go_on_from_another_import(imported, pretrained, small, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(imported, other)
    note = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(note | {"read": {}}))
    with pytest.raises(ConfigError, match="another configuration"):
        pretrain.train(small, pretrained / "labels", pretrained / "run", pretrained / "micro.yaml", init=other)


@pytest.mark.parametrize("change", [{}, {"policy.decoder": "discrete", "policy.action_bins": 15},
                                    {"future_weight": 1.0}], ids=["flow", "discrete", "future"])
def test_finetuning_may_begin_without_a_pretraining(imported, small, tmp_path, change):
    (tmp_path / "ft.yaml").write_text(PRESET)
    finetune.train(small, tmp_path / "ft", tmp_path / "ft.yaml", imported, {"loop.lr": 0.0, **change})
    policy = Checkpoint.load(tmp_path / "ft" / "checkpoint").policy
    theirs = load_file(imported / "policy.safetensors")
    assert theirs.keys() <= policy.state_dict().keys() and same(policy.state_dict(), theirs)
    assert act(tmp_path / "ft" / "checkpoint", small).shape == (14, 8)
    assert "Llama 2" in (tmp_path / "ft" / "checkpoint" / "LICENCE.txt").read_text()


def test_the_future_frames_head_comes_along(imported, small, captured, tmp_path):
    (tmp_path / "ft.yaml").write_text(PRESET)
    finetune.train(small, tmp_path / "ft", tmp_path / "ft.yaml", imported, {"future_weight": 1.0})
    head = captured[0].model.joint.vision_head.weight
    assert torch.equal(head, load_file(imported / "heads.safetensors")["vision_head.weight"][: CODES + 2])


@pytest.mark.parametrize("actions", [8, 5])
def test_action_parts_are_taken_where_they_fit(small, captured, tmp_path, actions):
    flat = lwm.make_llama(text=TEXT, vision=32, actions=actions, latents=9)
    folder = bring(tmp_path / "files", flat, lwm.make_vqgan(widths=(32,) * 5, codes=CODES))
    (tmp_path / "ft.yaml").write_text(PRESET)
    finetune.train(small, tmp_path / "ft", tmp_path / "ft.yaml", folder)
    mine, theirs = captured[0].model.state_dict(), load_file(folder / "policy.safetensors")
    taken = {k for k in theirs if k.split(".")[0] in ("action_in", "action_mix", "action_out", "head")}
    assert len(taken) == 8 and all(torch.equal(mine[k], theirs[k]) == (actions == 8) for k in taken - {"head.bias"}
                                   if mine[k].shape == theirs[k].shape)


# --- refusals -------------------------------------------------------------------------------------------------

def without(name):
    return lambda folder, _: (folder / name).unlink()


def edited(name, **values):
    def change(folder, _):
        path, said = folder / name, json.loads((folder / name).read_text())
        (said["model"] if "model" in said else said).update(values)
        path.write_text(json.dumps(said))
    return change


def headless(folder, _):
    tensors = load_file(folder / "heads.safetensors")
    del tensors["text_head.weight"]
    save_file(tensors, folder / "heads.safetensors")


def cut(folder, _):
    tensors = load_file(folder / "policy.safetensors")
    tensors["trunk.layers.1.mlp.up_proj.weight"] = torch.zeros(23, 16)
    save_file(tensors, folder / "policy.safetensors")


def flipped(folder, _):
    data = bytearray((folder / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "policy.safetensors").write_bytes(data)


def halved(folder, _):
    data = (folder / "heads.safetensors").read_bytes()
    (folder / "heads.safetensors").write_bytes(data[: len(data) // 2])


def nothing(folder, _):
    pass


def tokens(change):
    """A tokenizer.json of the user's, with other text in the vocabulary."""
    def make(folder, out):
        said = json.loads((folder / "tokenizer.json").read_text())
        change(said["model"]["vocab"], said)
        (out / "mine.json").write_text(json.dumps(said))
    return make


def renumber(vocab, _):
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def more(_, said):
    said["added_tokens"] += [{**said["added_tokens"][0], "id": 380 + i, "content": f"<{i}>"} for i in range(12)]


BOTH = [
    ({"policy.backbone.width": 32}, nothing, "policy.backbone.width = 32, that of .* is 16; make them the same"),
    ({"policy.backbone.layers": 3}, nothing, "backbone.layers = 3, that of .* is 2"),
    ({"policy.backbone.heads": 4}, nothing, "heads = 4, that of .* is 2; .* --heads"),
    ({"policy.backbone.ffn": 32}, nothing, "ffn = 32, that of .* is 24"),
    ({"policy.backbone.rope_theta": 1e4}, nothing, "rope_theta = 10000.*is 50000000.*--rope-theta"),
    ({"policy.vision_merge": 2}, nothing, "vision_merge = 2, that of .* is 1"),
    ({"policy.vision_table_width": 8}, nothing, "vision_table_width = 8, that of .* is 0"),
    ({"policy.vision_position": True}, nothing, "vision_position = True, that of .* is False"),
    ({}, without("model.json"), "has no model.json; give the folder vipra import-lwm made"),
    ({}, without("heads.safetensors"), "has no heads.safetensors"),
    ({}, without("vq.safetensors"), "has no vq.safetensors, the VQGAN was not imported; .*--vqgan"),
    ({}, without("tokenizer.json"), "tokenizer.json: no such file; import again with --tokenizer"),
    ({}, without("LICENCE.txt"), "LICENCE.txt: missing or changed since the import"),
    ({}, edited("vq.json", codebook_size=25), "codebook_size of .*vq.json is 25, of model.json 24"),
    ({}, edited("vq.json", widths=[32] * 4, blocks=[1] * 4), "grid of .*vq.json is 32, of model.json 16"),
    ({}, edited("model.json", text_vocab=372), "tokenizer.json has 380 tokens, the text table of .* 372"),
    ({}, cut, "up_proj.weight of .*policy.safetensors is 23x16, the network's 24x16"),
    ({}, flipped, "policy.safetensors: missing or changed since the import"),
    ({}, halved, "heads.safetensors: unreadable"),
    ({"tokenizer": "nowhere.json"}, nothing, "nowhere.json: no such file; give LLaMA's"),
    ({"tokenizer": "OUT/mine.json"}, tokens(renumber), "mine.json numbers '.*leave tokenizer empty"),
    ({"tokenizer": "OUT/mine.json"}, tokens(more), "mine.json has 392 tokens, the text table of .* 388"),
    ({"vq": "QUANTISER"}, nothing, "is not the quantiser of .*leave vq empty"),
]
ONE = [
    ("pretrain", {}, headless, "heads.safetensors has no text_head.weight"),
    ("pretrain", {}, without("manifest.json"), "has no manifest.json; give the folder vipra import-lwm made"),
]


@pytest.mark.parametrize(("stage", "change", "damage", "said"),
                         [(stage, *row) for row in BOTH for stage in ("pretrain", "finetune")] + ONE)
def test_what_does_not_fit_is_refused_before_anything_is_made(
        imported, pretrained, quantiser, small, tmp_path, monkeypatch, stage, change, damage, said):
    shutil.copytree(imported, tmp_path / "lwm")
    damage(tmp_path / "lwm", tmp_path)
    (tmp_path / "micro.yaml").write_text(PRESET)
    swap = {"OUT/mine.json": str(tmp_path / "mine.json"), "QUANTISER": str(quantiser)}
    change = {k: swap.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    made = []
    monkeypatch.setattr(tokenise, "tokenise", lambda *_: made.append("codes"))
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: made.append(self.weight.device.type))
    with pytest.raises(ConfigError, match=f"(?s){said}") as refused:
        if stage == "pretrain":
            pretrain.train(small, pretrained / "labels", tmp_path / "run", tmp_path / "micro.yaml", change,
                           init=tmp_path / "lwm")
        else:
            finetune.train(small, tmp_path / "run", tmp_path / "micro.yaml", tmp_path / "lwm", change)
    assert "\n" not in str(refused.value) and set(made) <= {"meta"}


def test_the_paper_preset_refuses_a_smaller_import(imported, pretrained, small, tmp_path):
    for stage in (lambda: pretrain.train(small, pretrained / "labels", tmp_path, "paper", init=imported),
                  lambda: finetune.train(small, tmp_path, "paper", imported)):
        with pytest.raises(ConfigError, match="policy.backbone.width = 4096, that of .* is 16"):
            stage()


def test_the_users_own_tokenizer_of_the_same_ids_is_taken(imported, tmp_path):
    shutil.copy(imported / "tokenizer.json", tmp_path / "mine.json")
    opened = LWMFolder.open(imported, "pretrain")
    assert opened.tokenizer(str(tmp_path / "mine.json")).get_vocab() == opened.tokenizer().get_vocab()


def test_the_command_line_hands_the_folder_on(monkeypatch):
    seen = []
    monkeypatch.setattr(pretrain, "train", lambda *a, **how: seen.append(how["init"]))
    for end in ("--preset paper --init out/lwm", "--set vq=out/vq"):
        with pytest.raises(SystemExit):
            cli.main(f"train pretrain out/d out/l out/p {end}".split())
    assert seen == ["out/lwm", ""]
