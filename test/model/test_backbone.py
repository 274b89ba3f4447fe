"""The trunk: our CPU attention equals the library's, and the 7B size is the paper's."""

import torch
from transformers import LlamaModel

from vipra_ros.learning.finetune import configure
from vipra_ros.model.backbone import PAPER, BackboneConfig, additive_mask, make_backbone
from vipra_ros.model.policy import PolicyConfig, parameter_count


def test_matmul_attention_equals_the_library_kernels():
    results = {}
    for kernel in ("matmul", "sdpa", "eager"):
        torch.manual_seed(0)
        trunk = make_backbone(BackboneConfig(width=32, layers=2, heads=2, ffn=48, attention=kernel))
        assert isinstance(trunk, LlamaModel)
        x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        allowed = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, -1, -1)
        y = trunk(
            inputs_embeds=x,
            attention_mask=additive_mask(allowed, torch.float32),
            position_ids=torch.arange(9).expand(2, -1),
        ).last_hidden_state
        y.pow(2).sum().backward()
        results[kernel] = (y.detach(), x.grad)
    for kernel in ("sdpa", "eager"):
        for ours, theirs in zip(results["matmul"], results[kernel]):
            assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-4)


def test_paper_size_on_the_meta_device():
    """LLaMA-7B without its text head and table is 6 476 271 616 weights: 32 x (4 d^2 + 3 d f + 2 d) + d."""
    with torch.device("meta"):
        trunk = make_backbone(PAPER)
    assert sum(p.numel() for p in trunk.parameters()) == 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert trunk.config.rope_parameters["rope_theta"] == 5e7 and trunk.config.rms_norm_eps == 1e-6


def test_paper_policy_counts_tables_and_action_layers():
    d, a = 4096, 8
    config = PolicyConfig(backbone=PAPER, text_vocab=32000, codebook_size=8192, grid=16, action_dim=a)
    trunk = 32 * (4 * d**2 + 3 * d * 11008 + 2 * d) + d
    tables = 32000 * d + 8194 * d
    actions = (a + 1) * d // 2 + 2 * (d + 1) * d + (d + 1) * a
    assert parameter_count(config) == trunk + tables + actions


def test_presets_name_the_documented_sizes():
    paper, tiny = configure("paper", {}), configure("tiny", {})
    assert paper.policy["backbone"] == {**tiny.policy["backbone"], **paper.policy["backbone"]}
    built = PolicyConfig(backbone=BackboneConfig(**paper.policy["backbone"]))
    assert (built.backbone.width, built.backbone.layers, built.backbone.heads, built.backbone.ffn) == (
        4096,
        32,
        32,
        11008,
    )
    beyond = (
        "vision_table_width",
        "vision_merge",
        "vision_position",
        "bidirectional_prefix",
        "bidirectional_actions",
        "time_band",
    )
    default = PolicyConfig()
    assert all(key not in paper.policy or paper.policy[key] == getattr(default, key) for key in beyond)
    assert paper.loop.muon_lr == paper.loop.ema == 0.0 and not paper.relative_actions
    assert (paper.loop.batch, paper.loop.steps, paper.loop.lr) == (512, 30000, 4e-4)
