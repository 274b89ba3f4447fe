"""Where a policy computes: what is refused, and that no number is left on the CPU while weights lie elsewhere.

torch's meta device stands for a GPU: it has no values, but it is another place, and a kernel with operands in two
places is found out by watching every operation.
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vipra_ros.config import ConfigError
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.discrete import make_policy
from vipra_ros.model.patch_vq import make_quantiser
from vipra_ros.model.policy import PolicyConfig, Prefix
from vipra_ros.model.vq import VQConfig
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
from vipra_ros.policy.device import check_device, choose_device, device_of, plain
from vipra_ros.policy.engine import SAMPLERS, load_engine, open_engine
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.prior import Prior
from vipra_ros.policy.rtc import GuidedSampler, TrainedSampler
from vipra_ros.policy.static import StaticSampler
from vipra_ros.policy.weights import WEIGHTS

BASE = PolicyConfig(
    backbone=BackboneConfig(width=48, layers=2, heads=2, ffn=64, attention="sdpa"), text_vocab=32, codebook_size=16,
    grid=4, proprio_steps=2,
)  # fmt: skip
CONFIGS = {
    "causal": BASE,
    "all options": dataclasses.replace(
        BASE, cameras=2, vision_table_width=8, vision_merge=2, vision_position=True, bidirectional_prefix=True,
        bidirectional_actions=True, time_band="wide",
    ),
    "discrete": dataclasses.replace(BASE, decoder="discrete", action_bins=9, action_position=True),
}  # fmt: skip


class OnePlace(TorchDispatchMode):
    """Fails where an operation, other than a copy, takes arrays from two devices, or makes one on the CPU."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim}
        made = {t.device.type for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.ndim}
        if "copy" not in str(operation):
            assert len(given) < 2, f"{operation} takes arrays from {given}"
            assert "cpu" not in made, f"{operation} makes an array on the CPU"
        return result


@pytest.fixture(params=[True, False])
def truth(request, monkeypatch):
    """What a question about values answers; meta has none."""
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: request.param)
    monkeypatch.setattr(torch, "equal", lambda a, b: request.param)


def samplers():
    for decoder, kinds in SAMPLERS.items():
        for name, made in kinds.items():
            for config in CONFIGS:
                if CONFIGS[config].decoder == decoder:
                    yield pytest.param(made, config, False, id=f"{name}-{config}")
    for weights in WEIGHTS[1:]:
        yield pytest.param(partial(StaticSampler, weights=weights), "causal", False, id=f"static-{weights}")
    for made in (GuidedSampler, lambda policy, steps: TrainedSampler(policy, steps, 4)):
        yield pytest.param(made, "all options", True)


@pytest.mark.parametrize("make, name, guided", list(samplers()))
def test_samplers_compute_where_their_weights_lie(make, name, guided, truth, prefix_of):
    config = CONFIGS[name]
    policy = make_policy(config).eval().requires_grad_(False).to("meta")
    prefix = prefix_of(config, 1, False)
    moved = {k: v.to("meta") for k, v in vars(prefix).items()}
    noise = torch.zeros(1, config.horizon, config.action_dim, device="meta")
    given = {"target": noise, "weights": noise[..., 0]} if guided else {}
    with OnePlace():
        sampler = make(policy, 3)
        for _ in range(2):
            found = sampler(dataclasses.replace(prefix, **moved), noise, lambda stage: None, **given)
    assert found.device.type == "meta" and found.shape == noise.shape


def test_what_is_captured_asks_for_no_value(prefix_of):
    """A question about a value would wait for the GPU, which a CUDA graph cannot; meta cannot answer one."""
    for name in ("causal", "all options"):
        policy = make_policy(CONFIGS[name]).eval().requires_grad_(False).to("meta")
        moved = {k: v.to("meta") for k, v in vars(prefix_of(policy.config, 1, False)).items()}
        for weights in WEIGHTS:
            sampler = StaticSampler(policy, 3, weights=weights)
            bucket = sampler._make(16, Prefix(**moved))
            assert sampler._chunk(bucket, 0).shape == bucket.noise.shape


def test_what_watches_the_places_sees_two_of_them():
    table, rows = torch.zeros(4, 3, device="meta"), torch.zeros(2, dtype=torch.int64)
    with OnePlace(), pytest.raises(AssertionError, match="takes arrays from"):
        torch.nn.functional.embedding(rows, table)
    with OnePlace(), pytest.raises(AssertionError, match="on the CPU"):
        torch.zeros(3)


@pytest.mark.parametrize("kind", ["conv", "patch"])
def test_quantisers_compute_where_their_weights_lie(kind):
    config = VQConfig(kind=kind, image_size=32, patch=8, widths=(8, 8, 8), blocks=(0, 0, 0), codebook_size=16,
                      code_dim=4)
    quantiser, frames = make_quantiser(config).to("meta"), torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device="meta")
    with OnePlace():
        assert quantiser.encode(frames).device == device_of(quantiser) == torch.device("meta")


@pytest.mark.parametrize("rtc", ["none", "guided"])
def test_an_observation_is_brought_to_the_weights_and_its_chunk_back(rtc, two_arm_checkpoint):
    loaded = Checkpoint.load(two_arm_checkpoint)
    loaded.policy.to("meta"), loaded.vq.to("meta")
    engine, seen = load_engine(loaded, "torch", 1, rtc=rtc), []
    assert engine.device == "meta"
    h, a = loaded.config.horizon, loaded.config.policy.action_dim

    def sample(prefix, noise, mark, **given):
        seen.extend([*vars(prefix).values(), noise, *given.values()])
        return torch.zeros(len(noise), h, a)  # as if it had been computed there

    sample.guided, sample.weights = rtc == "guided", lambda horizon, *_: np.zeros(horizon)
    engine._sample = sample
    size, c = loaded.config.image_size, loaded.config
    frames = {name: np.zeros((c.policy.frames, size, size, 3), np.uint8) for name in c.cameras}
    prior = Prior(np.zeros((4, a)), 2) if rtc == "guided" else None
    chunk = engine.infer(Observation(0.0, frames, "reach", np.zeros((1, a)), prior=prior), seed=0).actions
    assert chunk.shape == (h, a) and isinstance(chunk, np.ndarray)
    assert {t.device.type for t in seen if t is not None} == {"meta"} and len(seen) == (9 if prior else 7)


# --- the choice --------------------------------------------------------------------------------------------------


@pytest.fixture
def cards(monkeypatch):
    """As many GPUs for torch to see as the returned function is told."""

    def there(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there


def test_auto_is_a_gpu_where_the_engines_compute_on_one(cards, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    cards(0)
    assert [choose_device("auto", [e]) for e in ("torch", "onnx", "fused")] == ["cpu"] * 3
    cards(2)
    assert choose_device("auto", ["torch"]) == choose_device("auto", ["static", "eager"]) == "cuda"
    assert choose_device("auto", ["torch", "fused"]) == "cpu"
    assert choose_device("cuda:1", ["static"]) == "cuda:1" and choose_device("cpu", ["static"]) == "cpu"
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    assert choose_device("auto", ["onnx"]) == "cpu"
    providers.insert(0, "CUDAExecutionProvider")
    assert choose_device("auto", ["onnx"]) == "cuda"


@pytest.mark.parametrize(
    "device, engine, count, said",
    [
        ("gpu", "torch", 1, "device = 'gpu': write auto, cpu, cuda"),
        ("cuda:", "torch", 1, "write auto"),
        ("cuda", "torch", 0, "finds no GPU here; install its CUDA build and the card's driver, or choose device 'cpu'"),
        ("cuda:2", "static", 2, "there are 2 GPUs here, the last is 'cuda:1'"),
        ("cuda", "fused", 1, "choose engine 'static' or 'torch', or device 'cpu'"),
        ("cpu", "tensorrt", 1, "choose engine 'onnx', or device 'cuda'"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(device, engine, count, said, cards):
    cards(count)
    with pytest.raises(ConfigError, match=said) as error:
        choose_device(device, [engine])
    assert "\n" not in str(error.value)


def test_devices_are_checked_without_torch():
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:12"):
        check_device(device)
    with pytest.raises(ConfigError, match="'CUDA'"):
        check_device("CUDA")


def test_onnxruntime_without_its_gpu_names_what_it_has(micro_checkpoint, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from vipra_ros.policy.onnx_engine import providers

    with pytest.raises(CheckpointError, match="this onnxruntime has .*CPUExecutionProvider.* not CUDAEx.*onnxruntime-"):
        open_engine(micro_checkpoint, "onnx", "cuda")
    with pytest.raises(CheckpointError, match="not TensorrtExecutionProvider"):
        open_engine(micro_checkpoint, "tensorrt")
    assert providers("cpu") == [("CPUExecutionProvider", {})]
    names = ["Tensorrt", "CUDA", "CPU"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [f"{n}ExecutionProvider" for n in names])
    wanted = ("cuda", False, "0", 2), ("cuda:1", False, "1", 2), ("cuda:1", True, "1", 3)
    for device, tensorrt, index, count in wanted:
        found = providers(device, tensorrt)
        assert [name.removesuffix("ExecutionProvider") for name, _ in found] == names[-count:]
        assert all(options == {"device_id": index} for _, options in found[:-1])


def test_a_provider_that_does_not_start_is_not_passed_over(monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from vipra_ros.policy.onnx_engine import OnnxSampler

    class Session:
        def __init__(self, *given, **options):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(CheckpointError, match="could not start CUDAExecutionProvider on cuda:1"):
        OnnxSampler(tmp_path, 2, "cuda:1")


def test_graphs_are_made_from_a_copy_of_what_others_compute_with():
    network = torch.nn.Linear(2, 2)
    assert plain(network) is network
    half = network.to(torch.bfloat16)
    assert plain(half).weight.dtype == torch.float32 and half.weight.dtype == torch.bfloat16


def test_engines_say_what_they_are(micro_checkpoint):
    engine = open_engine(micro_checkpoint, "static", "cpu", 1, euler_steps=3)
    assert (engine.name, engine.device, engine.steps) == ("static", "cpu", 3)
    with pytest.raises(CheckpointError, match="euler_steps = -1"):
        open_engine(micro_checkpoint, "torch", "cpu", euler_steps=-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind, weights", [*((k, "full") for k in ("eager", "torch", "static")),
                                           *(("static", w) for w in WEIGHTS[1:])])
def test_a_gpu_answers_as_the_processor(kind, weights, micro_checkpoint):
    last = f"cuda:{torch.cuda.device_count() - 1}"
    ours = open_engine(micro_checkpoint, kind, last, weights=weights)
    theirs = open_engine(micro_checkpoint, "torch", "cpu", weights=weights)
    ours.warm_up()
    for seed, words in enumerate(["reach", "reach above the red cube", "reach above the red cube"]):
        size = ours.checkpoint.config.image_size
        frames = np.random.default_rng(seed).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
        seen = Observation(1.0, {"front": frames}, words)
        # Frames' codes may differ where two are equally near; the policy is asked with the same ones.
        ours._codes_of = lambda images: theirs._codes_of(images).to(last)
        assert np.allclose(ours.infer(seen, seed).actions, theirs.infer(seen, seed).actions, atol=2e-3)
