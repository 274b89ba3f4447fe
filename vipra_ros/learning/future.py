"""SP3: the future frame stays a target while fine-tuning (in the paper an ablation, and it hurts).

The stage-2 network over the policy's own trunk and tables predicts the future frame from the same prompt and the same
two frames; its cross-entropy is added to the action loss. In the sequence the future frame stands where it stood in
pre-training, after the observed frames and before the action tokens, and the actions do not look at it: acting must
not need a frame that nobody has seen, so inference, which draws none, computes what training computed. How the paper's
code lets actions look is not published. The heads of the frame serve training only and are no part of the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vipra_ros.learning.lwm_folder import LWMFolder
from vipra_ros.learning.parallel import placed
from vipra_ros.learning.pretrain import closing
from vipra_ros.model.discrete import DiscretePolicy
from vipra_ros.model.joint import JointBatch, JointConfig, JointModel
from vipra_ros.model.policy import FlowPolicy, Prefix
from vipra_ros.policy.pretrained import Pretrained
from vipra_ros.policy.text import Prompt

#: What policy and stage-2 network have in common, by name.
SHARED = ("trunk", "text", "vision", "vision_in", "end_in", "vision_row", "vision_column", "vision_frame")
#: What only the future frame needs.
OF_FUTURE = ("vision_split", "vision_head", "vision_future")


class WithFuture(nn.Module):
    """A policy and the future frame's head on top of its trunk.

    Args:
        start: the pre-training, or the imported weights, whose head is taken over; without one, or one that knew no
            future frame, it is fresh.
    """

    def __init__(self, policy: FlowPolicy | DiscretePolicy, prompt: Prompt, start: Pretrained | LWMFolder | None):
        super().__init__()
        self.policy = policy
        self.joint = JointModel(JointConfig(policy=policy.config, future=True, latent_steps=0))
        for name in SHARED:
            if hasattr(policy, name):
                setattr(self.joint, name, getattr(policy, name))
        if isinstance(start, LWMFolder):
            start.fill(self.joint, ("vision_head",))
        elif start is not None and start.config.joint.future:
            known = {k: v for k, v in start.model.state_dict().items() if k.split(".")[0] in OF_FUTURE}
            with torch.no_grad():
                self.joint.load_state_dict(known, strict=False)
        self.close, self.open, self.end = closing(prompt, False)

    def future_loss(self, prefix: Prefix, codes: Tensor) -> Tensor:
        """Cross-entropy in nat per code of the future frames, int64 (b, cameras, codes per frame)."""
        batch = JointBatch(prefix.before, prefix.before_mask, prefix.codes, codes, None,
                           self.close, self.open, self.end)
        return self.joint.losses(placed(batch, codes.device))["future"]
