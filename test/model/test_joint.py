"""The sequence of stage 2, token by token, and where its loss sits."""

import dataclasses

import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model.backbone import BackboneConfig
from vipra_ros.model.joint import WEIGHTS, JointBatch, JointConfig, JointModel, weighed
from vipra_ros.model.policy import PolicyConfig

POLICY = PolicyConfig(
    backbone=BackboneConfig(width=16, layers=1, heads=2, ffn=16), text_vocab=16, codebook_size=8, grid=2
)
BASE = JointConfig(policy=POLICY, latent_steps=2, codes_per_step=2, latent_codebook=4)
END_FRAME, END_VISION, END_STEP = 8, 9, 4
CLOSE, OPEN, DONE, EOS = 11, 12, 13, 3


def batch(config, latents=True):
    return JointBatch(
        before=torch.tensor([[2, 5, 10]]),
        before_mask=torch.ones(1, 3, dtype=torch.bool),
        codes=torch.tensor([[[[0, 1, 2, 3]], [[4, 5, 6, 7]]]]),
        future=torch.tensor([[[7, 6, 5, 4]]]) if config.future else None,
        latents=torch.tensor([[[0, 1], [2, 3]]]) if config.latent_steps else None,
        close=torch.tensor([CLOSE]), open=torch.tensor([OPEN]),
        end=torch.tensor([DONE, EOS] if config.latent_steps else [EOS]),
    )


def test_golden_sequence():
    torch.manual_seed(0)
    model = JointModel(BASE)
    embedded, present, spans = model.assemble(batch(BASE))
    text, vision, latent = model.text.weight, model.vision.weight, model.latent.weight
    golden = [text[2], text[5], text[10]]
    golden += [vision[i] for i in (0, 1, 2, 3, END_FRAME, 4, 5, 6, 7, END_FRAME, 7, 6, 5, 4, END_VISION)]
    golden += [text[CLOSE], text[OPEN]]
    golden += [latent[i] for i in (0, 1, END_STEP, 2, 3, END_STEP)] + [text[DONE], text[EOS]]
    assert present.all() and torch.equal(embedded[0], torch.stack(golden))
    assert [(kind, ids.flatten().tolist()) for kind, ids in spans] == [
        (1, [7, 6, 5, 4, END_VISION]), (0, [CLOSE]), (0, [OPEN]), (2, [0, 1, END_STEP, 2, 3, END_STEP]),
        (0, [DONE, EOS]),
    ]
    # The loss by hand: each span by its own head, read one token earlier; the first 13 tokens are never a target.
    hidden = model.hidden(embedded, present, 13)[0]
    nll = lambda head, at, ids: -head(hidden[at - 1 : at - 1 + len(ids)]).log_softmax(-1)[range(len(ids)), ids]  # noqa: E731
    losses = model.losses(batch(BASE))
    assert torch.allclose(losses["future"], nll(model.vision_head, 13, [7, 6, 5, 4, 9]).mean(), atol=1e-6)
    assert torch.allclose(losses["latent"], nll(model.latent_head, 20, [0, 1, 4, 2, 3, 4]).mean(), atol=1e-6)
    words = torch.cat([nll(model.text_head, at, [i]) for at, i in ((18, 11), (19, 12), (26, 13), (27, 3))])
    assert torch.allclose(losses["text"], words.mean(), atol=1e-6)
    paper, code = (weighed(losses, WEIGHTS[k]) for k in ("paper", "code"))
    assert torch.allclose(paper, losses["future"] + losses["latent"])
    assert torch.allclose(code, 0.48 * losses["future"] + 0.48 * losses["latent"] + 0.02 * losses["text"])


def test_codes_that_change_may_count_more():
    torch.manual_seed(0)
    model, one = JointModel(BASE), batch(BASE)
    now = dataclasses.replace(one, codes=one.codes.clone())
    now.codes[:, -1] = torch.tensor([7, 6, 1, 4])  # of the future 7 6 5 4 one code is another now
    embedded, present, _ = model.assemble(now)
    hidden = model.hidden(embedded, present, 13)[0]
    each = -model.vision_head(hidden[12:17]).log_softmax(-1)[range(5), [7, 6, 5, 4, END_VISION]]
    parts = model.losses(now, 3.0)
    assert torch.allclose(parts["changed"], each[2], atol=1e-6)
    assert torch.allclose(parts["future"], (each.sum() + 2 * each[2]) / 7, atol=1e-6)
    same = dataclasses.replace(one, future=one.codes[:, -1])
    assert model.losses(same, 3.0)["changed"] == 0 and not model.losses(same, 3.0)["changed"].requires_grad


@pytest.mark.parametrize("change, end, parts", [
    (dict(future=False), END_VISION, {"latent", "text"}),
    (dict(latent_steps=0), END_FRAME, {"future", "changed", "text"})])
def test_variants_leave_their_part_out(change, end, parts):
    config = dataclasses.replace(BASE, **change)
    model = JointModel(config)
    embedded, _, _ = model.assemble(batch(config))
    assert torch.equal(embedded[0, 12], model.vision.weight[end])
    assert model.losses(batch(config)).keys() == parts
    with pytest.raises(ConfigError, match="nothing is left"):
        JointConfig(future=False, latent_steps=0)


def test_one_model_also_predicts_latents_from_the_observation_alone():
    torch.manual_seed(0)
    model, one = JointModel(BASE), dataclasses.replace(batch(BASE), future=None)
    embedded, _, spans = model.assemble(one)
    sp2 = JointModel(dataclasses.replace(BASE, future=False))
    sp2.load_state_dict(model.state_dict())  # the sequence of SP2, to the last token
    assert torch.equal(embedded, sp2.assemble(batch(sp2.joint))[0]) and [k for k, _ in spans] == [0, 0, 2, 0]
    assert torch.equal(embedded[0, 12], model.vision.weight[END_VISION]) and "future" not in model.losses(one)


def test_blind_latents_are_those_of_a_sequence_without_the_future_frame():
    torch.manual_seed(0)
    model, one = JointModel(BASE).eval(), batch(BASE)
    two = dataclasses.replace(one, **{k: getattr(one, k).repeat_interleave(2, 0)
                                      for k in ("before", "before_mask", "codes", "future", "latents")})
    two.blind = torch.tensor([True, False])
    embedded, present, _ = model.assemble(two)
    hidden = model.hidden(embedded, present, 13, two.blind)
    seen = model.hidden(embedded, present, 13)
    assert torch.allclose(hidden[1], seen[1], atol=1e-6) and torch.allclose(hidden[0, :18], seen[0, :18], atol=1e-6)
    kept = [i for i in range(embedded.shape[1]) if not 13 <= i < 18]  # the frame taken out, nothing else
    without = model.hidden(embedded[:1, kept], present[:1, kept], 13)
    assert torch.allclose(hidden[:1, 18:], without[:, 13:], atol=1e-6)
    assert not torch.allclose(hidden[0, 18:], seen[0, 18:], atol=1e-3)
    # Both sequences count in every part; the blind one's latents are reported besides.
    losses, plain = model.losses(two), model.losses(one)
    alone = model.losses(dataclasses.replace(one, blind=torch.tensor([True])))
    assert torch.allclose(losses["future"], plain["future"], atol=1e-6)
    assert torch.allclose(losses["latent"], (plain["latent"] + alone["latent"]) / 2, atol=1e-6)
    assert torch.allclose(losses["latent_blind"], alone["latent"], atol=1e-6)
    assert not losses["latent_blind"].requires_grad and "latent_blind" not in plain


@pytest.mark.parametrize("policy", [POLICY, dataclasses.replace(
    POLICY, vision_merge=2, vision_table_width=8, vision_position=True, bidirectional_prefix=True)])
def test_no_target_is_seen_before_it_is_predicted_and_padding_is_invisible(policy):
    torch.manual_seed(0)
    config = dataclasses.replace(BASE, policy=policy)
    model, one = JointModel(config).eval(), batch(config)
    embedded, present, _ = model.assemble(one)
    observed = embedded.shape[1] - config.future_tokens - config.latent_tokens - 4
    plain = model.hidden(embedded, present, observed)
    other = embedded.clone()
    other[:, observed:] += 1.0
    assert torch.allclose(plain[:, :observed], model.hidden(other, present, observed)[:, :observed], atol=1e-6)
    padded = dataclasses.replace(one, before=torch.tensor([[0, 0, 2, 5, 10]]),
                                 before_mask=torch.tensor([[False, False, True, True, True]]))
    for name, value in model.losses(one).items():
        assert torch.allclose(model.losses(padded)[name], value, atol=1e-5)


def test_imagine_finds_the_future_it_was_taught():
    torch.manual_seed(0)
    config = dataclasses.replace(BASE, policy=dataclasses.replace(POLICY, vision_merge=1))
    model = JointModel(config)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        optimiser.zero_grad()
        weighed(model.losses(batch(config)), WEIGHTS["paper"]).backward()
        optimiser.step()
    assert model.imagine(batch(config)).tolist() == [[[7, 6, 5, 4]]]
