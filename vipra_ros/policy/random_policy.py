"""Checkpoints with random weights, for timing sizes that nobody has trained here. They never leave memory."""

from __future__ import annotations

import dataclasses

import torch

from vipra_ros import __version__
from vipra_ros.config import ConfigError
from vipra_ros.control.chunk import GRIPPER_CONVENTION
from vipra_ros.control.profile import load_profile
from vipra_ros.model.backbone import PAPER, BackboneConfig
from vipra_ros.model.discrete import DiscretePolicy, make_policy
from vipra_ros.model.patch_vq import make_quantiser
from vipra_ros.model.policy import ActingPolicy, PolicyConfig
from vipra_ros.model.vq import VQConfig
from vipra_ros.model.vqgan import LWM
from vipra_ros.policy.checkpoint import FORMAT, Checkpoint, CheckpointConfig
from vipra_ros.policy.text import PAPER_PROMPT, Prompt, train_word_tokenizer

INSTRUCTION = "push the blue cube into the left zone"
_PATCHES = VQConfig(kind="patch", image_size=128, patch=8, codebook_size=2048, code_dim=24)
#: Trunk, quantiser, entries of the text table (0: those of the prompt). `mid` is what a CPU still runs in a second.
SIZES = {
    "tiny": (BackboneConfig(), _PATCHES, 0),
    "mid": (BackboneConfig(width=768, layers=12, heads=12, ffn=2048, attention="sdpa"), _PATCHES, 0),
    "paper": (PAPER, LWM, 32000),
}


def sizes(preset: str) -> tuple[PolicyConfig, VQConfig]:
    """Architecture of a preset: one camera, two frames, 14 steps of 7 joints and a gripper, no option of ours.

    Raises:
        ConfigError: unknown preset.
    """
    if preset not in SIZES:
        raise ConfigError(f"preset {preset!r}: choose one of {', '.join(SIZES)}")
    backbone, vq, vocabulary = SIZES[preset]
    vocabulary = vocabulary or Prompt(_tokenizer(), PAPER_PROMPT, False).size
    return PolicyConfig(backbone, text_vocab=vocabulary, codebook_size=vq.codebook_size, grid=vq.grid), vq


def random_checkpoint(
    preset: str, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0, decoder: str = "flow"
) -> Checkpoint:
    """A policy of that size, on the device and in the type at once: the paper's never exists in float32.

    Its tokenizer knows the prompt's words; LLaMA's makes about half as many tokens more of the same prompt.
    """
    policy, vq = sizes(preset)
    policy = dataclasses.replace(policy, decoder=decoder)
    torch.manual_seed(seed)
    with torch.device("meta"):
        network, quantiser = make_policy(policy).to(dtype), make_quantiser(vq)
    network.trunk.rotary_emb = type(network.trunk.rotary_emb)(network.trunk.config)
    for module in (network, quantiser):
        module.to_empty(device=device) if module is quantiser else _to_empty(module, device)
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if "rotary" in name or not tensor.is_floating_point():
                    continue
                tensor.fill_(1.0) if "norm" in name and name.endswith("weight") else tensor.normal_(0.0, 0.02)
    if isinstance(network, DiscretePolicy):  # bins of equal width, as no actions are there to fit any
        network.edges.copy_(torch.linspace(-3.0, 3.0, policy.action_bins + 1))
    config = CheckpointConfig(
        format=FORMAT, variant="random", preset=preset, policy=policy, vq=vq, cameras=("front",),
        image_size=vq.image_size, preprocessing="resize", rate=15.0, frame_stride=2, horizon=policy.horizon,
        execute_steps=7, action_space="joint_position", joint_names=load_profile("fr3").joint_names,
        gripper=GRIPPER_CONVENTION, relative_actions=False, proprio_steps=0, prompt=PAPER_PROMPT, euler_steps=10,
        noise_scale=1.0, attention_order="causal", flow_estimator="none", perceptual_loss="none", seed=seed,
        data="none", code_version=__version__,
    )  # fmt: skip
    rows = {"mean": [0.0] * policy.action_dim, "std": [1.0] * policy.action_dim}
    return Checkpoint(config, network.eval(), quantiser.eval(), {"action": rows}, _tokenizer())


def _tokenizer():
    return train_word_tokenizer([PAPER_PROMPT.format(task=INSTRUCTION)])


def _to_empty(network: ActingPolicy, device: str) -> None:
    """`to_empty` for all but the rotary frequencies, which are computed, not stored."""
    rotary = network.trunk.rotary_emb
    network.trunk.rotary_emb = None
    network.to_empty(device=device)
    network.trunk.rotary_emb = rotary.to(device)
