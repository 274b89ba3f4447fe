"""`vipra import-lwm` on small random files in the published formats, against numpy."""

import contextlib
import json
import random

import lwm_files as lwm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vipra_ros.config import ConfigError
from vipra_ros.learning import import_lwm, jax_stream
from vipra_ros.learning.import_lwm import half_layout, main, plan_model
from vipra_ros.learning.jax_stream import Stored
from vipra_ros.learning.lwm_folder import load_imported
from vipra_ros.learning.tensor_file import write

HEADS = 2
SIZES = {"heads": HEADS, "codebook_size": 8}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bring(folder, flat, **how):
    """Write `flat` as a stream, import it, load it -> (policy, heads)."""
    folder.mkdir(exist_ok=True)
    lwm.write_stream(folder / "params", flat, **how)
    main(f"params::{folder / 'params'}", str(folder / "out"), **SIZES)
    return load_imported(folder / "out"), load_file(folder / "out" / "heads.safetensors")


def hidden_of(policy, embedded):
    """Causal pass of our trunk over (tokens, d)."""
    n = len(embedded)
    allowed = torch.ones(1, n, n, dtype=torch.bool).tril()
    with torch.inference_mode():
        return policy._run(embedded[None], allowed, torch.arange(n)[None], None)[0]


@pytest.mark.parametrize("how", [{}, {"form": "wrapped"}, {"form": "trainstate"}, {"chunk": 100}], ids=str)
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "numbered"])
def test_logits_equal_an_independent_forward(tmp_path, how, stacked):
    flat = lwm.make_llama(stacked=stacked)
    policy, heads = bring(tmp_path, flat, **how)
    ids, codes = np.array([1, 7, 30, 5]), np.array([3, 0, 7, 8])
    x = np.concatenate([flat["transformer/wte/embedding"][ids], flat["transformer/vte/embedding"][codes]])
    expected = lwm.llama(flat, x, HEADS)
    with torch.inference_mode():
        embedded = torch.cat([policy.text(torch.tensor(ids)), policy.vision(torch.tensor(codes))])
    ours = hidden_of(policy, embedded)
    for name, key in (("text", "lm_head"), ("vision", "vision_head")):
        logits = (ours @ heads[f"{name}_head.weight"].T).numpy()
        assert np.abs(logits - expected @ flat[f"{key}/kernel"]).max() < 2e-5
    # The test must notice a wrong rotary layout: without the permutation the result is another one.
    q = policy.trunk.layers[0].self_attn.q_proj.weight
    turned = half_layout(q.detach(), HEADS).clone()
    with torch.no_grad():
        q.copy_(turned)
    assert (hidden_of(policy, embedded) - ours).abs().max() > 1e-3


def test_half_layout_leaves_every_score_as_it_was():
    """Rotating neighbours on the published rows, and halves on the permuted rows, give the same q k products."""
    rng = np.random.default_rng(0)
    x, wq, wk = rng.standard_normal((6, 16)), *rng.standard_normal((2, 16, 16))
    neighbours = [lwm.rotate_neighbours((x @ w).reshape(6, HEADS, 8), 5e7) for w in (wq, wk)]

    def halves(w):
        y = (x @ half_layout(torch.from_numpy(w.T), HEADS).numpy().T).reshape(6, HEADS, 8)
        angle = np.arange(6)[:, None, None] / 5e7 ** (np.arange(0, 8, 2) / 8)
        a, b = y[..., :4], y[..., 4:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    one, two = (np.einsum("qhd,khd->hqk", *pair) for pair in (neighbours, (halves(wq), halves(wk))))
    assert np.abs(one - two).max() < 1e-12


def test_vipra_tables_action_encoder_and_head(tmp_path):
    """A published ViPRA policy: velocities of a whole sequence, and latent logits, equal numpy's."""
    flat = lwm.make_llama(actions=5, latents=9)
    policy, heads = bring(tmp_path, flat, form="trainstate")
    assert policy.config.action_dim == 5 and heads["latent.weight"].shape == (9, 16)
    rng = np.random.default_rng(1)
    chunk, t, prefix = rng.standard_normal((14, 5)).astype(np.float32), 0.3, flat["transformer/wte/embedding"][:5]
    hidden = lwm.llama(flat, np.concatenate([prefix, lwm.encode_actions(flat, chunk, t)]), HEADS)
    expected = hidden[5:] @ flat["action_head/kernel"] + flat["action_head/bias"]
    with torch.inference_mode():
        present = torch.ones(1, 5, dtype=torch.bool)
        ours = policy.joint_pass(
            torch.from_numpy(prefix)[None], present, torch.from_numpy(chunk)[None, None], torch.tensor([[t]])
        )[0, 0]
    assert np.abs(ours.numpy() - expected).max() < 5e-5
    latent = hidden_of(policy, torch.from_numpy(prefix)) @ heads["latent_head.weight"].T
    assert np.abs(latent.numpy() - hidden[:5] @ flat["latent_actions_head/kernel"]).max() < 2e-5
    table = np.concatenate([policy.vision.weight.detach(), heads["vision_spare.weight"]])
    assert np.array_equal(table, flat["transformer/vte/embedding"])


def test_bfloat16_is_kept_to_the_bit(tmp_path):
    flat = lwm.make_llama()
    policy, _ = bring(tmp_path, flat, bf16=True)
    table = torch.from_numpy(flat["transformer/wte/embedding"]).bfloat16()
    assert policy.text.weight.dtype == torch.bfloat16 and torch.equal(policy.text.weight, table)


def test_one_layer_of_a_stack_is_in_memory_at_a_time(tmp_path, monkeypatch):
    flat = lwm.make_llama(layers=9)
    lwm.write_stream(tmp_path / "params", flat)
    read, flat_read = [], Stored.flat
    monkeypatch.setattr(Stored, "flat", lambda self, a, b: read.append(b - a) or flat_read(self, a, b))
    _, policy, _ = plan_model(jax_stream.scan(tmp_path / "params"), **SIZES)
    assert read == []
    write(tmp_path / "x.safetensors", policy)
    biggest = max(v.size // (9 if "scan_decoder" in k else 1) for k, v in flat.items())
    assert len(read) == len(policy) and max(read) == biggest


def test_every_truncation_is_refused(tmp_path):
    lwm.write_stream(tmp_path / "params", lwm.make_llama(layers=1), chunk=300)
    data = (tmp_path / "params").read_bytes()
    whole = set(jax_stream.scan(tmp_path / "params"))
    cut = tmp_path / "cut"
    for at in random.Random(0).sample(range(1, len(data)), 150):
        cut.write_bytes(data[:at])
        try:
            found = jax_stream.scan(cut)
        except ConfigError as error:
            assert "cut" in str(error) and "\n" not in str(error)
        else:  # cut exactly between two pairs: what is missing is named
            assert set(found) < whole
            with pytest.raises(ConfigError, match="missing"):
                plan_model(found, **SIZES)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    lwm.write_stream(tmp_path / "params", lwm.make_llama(layers=1), chunk=300)
    data, chance = (tmp_path / "params").read_bytes(), random.Random(1)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(3):
            # Most of the file is weights; aim at the structure as well.
            at = chance.choice((chance.randrange(len(data)), chance.randrange(80)))
            broken[at] = chance.randrange(256)
        (tmp_path / "broken").write_bytes(broken)
        try:
            plan_model(jax_stream.scan(tmp_path / "broken"), **SIZES)
        except ConfigError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"transformer/h/scan_decoder/attention/wk/kernel": np.zeros((2, 16, 15), np.float32)}, "wk/kernel is 2x16x15"),
        ({"transformer/ln_f/kernel": np.zeros(15, np.float32)}, "ln_f/kernel is 15, expected 16"),
        ({"transformer/h/scan_decoder/feed_forward/w2/kernel": None}, "w2/kernel is missing"),
        ({"transformer/h/scan_decoder/q_norm/kernel": np.ones((2, 16), np.float32)}, "q_norm/kernel has no place"),
        ({"transformer/vte/embedding": np.zeros((9, 16), np.float32)}, "9 rows, fewer than 8 codes"),
        ({"lm_head/kernel": np.zeros((16, 48), np.complex64)}, "lm_head/kernel: dtype 'complex64'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, change, named):
    flat = {k: v for k, v in (lwm.make_llama() | change).items() if v is not None}
    lwm.write_stream(tmp_path / "params", flat)
    with pytest.raises(ConfigError, match=named):
        main(str(tmp_path / "params"), str(tmp_path / "out"), **SIZES)
    assert not (tmp_path / "out").exists()


def test_the_bar_is_full_when_all_is_done(tmp_path, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def bar(words, total):
        seen.append(total)
        yield seen.append

    monkeypatch.setattr(import_lwm, "bar", bar)
    bring(tmp_path, lwm.make_llama())
    total, *steps = seen
    # The small files beside the tensors and the rounding to MB are not in the total.
    assert len(steps) > 20 and abs(sum(steps) - total) < 0.6


def test_manifest_licence_and_a_changed_file(tmp_path):
    bring(tmp_path, lwm.make_llama())
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["written"]) == {p.name for p in out.iterdir()} - {"manifest.json"}
    assert "Llama 2" in manifest["licence"] and "Llama 2" in (out / "LICENCE.txt").read_text()
    with pytest.raises(ConfigError, match="not empty"):
        main(str(tmp_path / "params"), str(out), **SIZES)
    data = bytearray((out / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "policy.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match="changed since the import"):
        load_imported(out)
