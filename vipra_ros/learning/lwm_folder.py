"""The folder `vipra import-lwm` made, read: what pre-training, or fine-tuning without one, starts from.

    start = LWMFolder.open("out/lwm", "pretrain")
    start.check(wanted, lambda: JointModel(joint))   # sizes, names, hashes; before the network takes memory
    start.fill(model)                                # tensor by tensor, into the network's own type

Trunk, text and vision tables and, where the network has them, text and vision heads come from the folder. Latent table
and head stay as they are: their codes are those of one's own latent actions. So do action parts, unless the folder is
of a ViPRA policy with actions of the same size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from vipra_ros.config import ConfigError, build
from vipra_ros.learning import tokenise
from vipra_ros.learning.parallel import team
from vipra_ros.learning.vq import load_vq
from vipra_ros.model.patch_vq import PatchVQ
from vipra_ros.model.policy import FlowPolicy, PolicyConfig
from vipra_ros.model.vq import VQ, VQConfig
from vipra_ros.model.vqgan import VQGAN
from vipra_ros.policy.text import BEGIN, END, open_tokenizer

WEIGHTS = ("policy.safetensors", "heads.safetensors")
#: Modules that come from the folder, and those that do where they fit.
PARTS = ("trunk", "text", "vision", "text_head", "vision_head")
ACTIONS = ("action_in", "action_mix", "action_out", "head")
#: What has to be the same: of the trunk, of the tables. Options of the vision table that LWM has not are among them.
OF_TRUNK = ("width", "layers", "heads", "ffn", "rope_theta", "norm_eps")
OF_TABLES = ("text_vocab", "codebook_size", "code_groups", "grid", "vision_table_width", "vision_merge",
             "vision_position")
#: Values that `vipra import-lwm` was told or took for granted.
TOLD = {"heads": "--heads", "rope_theta": "--rope-theta", "codebook_size": "--codebook-size"}


@dataclass(frozen=True)
class LWMFolder:
    """An opened folder. config: sizes of the network; shapes: of every tensor, with its file; identity: SHA-256 of
    the manifest, which holds the hash of every file; notice: the licence, to be kept beside all that is made of it."""

    path: Path
    stage: str
    config: PolicyConfig
    shapes: dict[str, tuple[str, tuple[int, ...]]]
    identity: str
    notice: str

    @staticmethod
    def at(path: str | Path) -> bool:
        """Whether a folder is one of these."""
        return (Path(path) / "manifest.json").exists()

    @classmethod
    def open(cls, path: str | Path, stage: str) -> LWMFolder:
        """Read what describes the weights, not the weights. stage: pretrain or finetune, for messages.

        Raises:
            ConfigError: no such folder, or an incomplete one.
        """
        path = Path(path)
        for name in ("manifest.json", "model.json", *WEIGHTS):
            if not (path / name).exists():
                raise ConfigError(f"{stage}: init = {path} has no {name}; give the folder vipra import-lwm made")
        config = build(PolicyConfig, _json(path / "model.json"), source=f"{path}/model.json")
        shapes = {}
        for file in WEIGHTS:
            try:
                with safe_open(path / file, "pt") as tensors:
                    shapes |= {k: (file, tuple(tensors.get_slice(k).get_shape())) for k in tensors.keys()}
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path / file}: unreadable ({error}); run vipra import-lwm again") from None
        identity = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        licence = path / "LICENCE.txt"
        return cls(path, stage, config, shapes, identity, licence.read_text() if licence.exists() else "")

    # --- refusals ---------------------------------------------------------------------------------------------

    def check(self, wanted: PolicyConfig, network: Callable[[], nn.Module]) -> None:
        """Refuse a network that these weights do not fit, before it takes memory: `network` is made on the meta
        device. The first process then compares the hashes of the files, which reads them once.

        Raises:
            ConfigError: a size, an option, a tensor or a file, named, with the remedy.
        """
        for place, names, mine, theirs in (("policy.backbone", OF_TRUNK, self.config.backbone, wanted.backbone),
                                           ("policy", OF_TABLES, self.config, wanted)):
            for name in names:
                here, there = getattr(mine, name), getattr(theirs, name)
                if here != there:
                    again = f", or import again with {TOLD[name]}" if name in TOLD else ""
                    raise ConfigError(f"{self.stage}: {place}.{name} = {there}, that of {self.path} is {here}; "
                                      f"make them the same{again}")
        with torch.device("meta"):
            model = network()
        names = self.taken(model)
        if team().main:
            fresh = sorted({name.split(".")[0] for name in model.state_dict().keys() - set(names)})
            print(f"{self.stage}: {len(names)} tensors of {self.path}; fresh: {', '.join(fresh) or 'none'}", flush=True)
            self.verify()

    def verify(self) -> None:
        """Compare every file with the hash the import noted.

        Raises:
            ConfigError: one is missing, or has changed.
        """
        for name, digest in _json(self.path / "manifest.json")["written"].items():
            if not (self.path / name).exists() or sha256(self.path / name) != digest:
                raise ConfigError(f"{self.path / name}: missing or changed since the import; "
                                  "run vipra import-lwm again")

    def taken(self, model: nn.Module, parts: tuple[str, ...] = PARTS) -> list[str]:
        """Names of the weights of `model` that come from here.

        Raises:
            ConfigError: one is missing here, or of another shape.
        """
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        names = [name for name in own if name.split(".")[0] in parts]
        for name in names:
            file, shape = self.shapes.get(name, ("heads.safetensors" if "head" in name else "policy.safetensors", None))
            if shape is None:
                raise ConfigError(f"{self.stage}: {self.path / file} has no {name}, the imported stream had none; "
                                  "import one of LWM itself")
            # The published vision head also has the rows behind the end marks, which nothing uses.
            if shape[1:] != own[name][1:] or shape[0] < own[name][0] or (name != "vision_head.weight" and
                                                                         shape != own[name]):
                raise ConfigError(f"{self.stage}: {name} of {self.path / file} is {_by(shape)}, the network's "
                                  f"{_by(own[name])}; run vipra import-lwm again")
        acting = [name for name in own if name.split(".")[0] in ACTIONS]
        if parts is PARTS and acting and model.config.time_band == self.config.time_band and all(
                self.shapes.get(name, ("", ()))[1] == own[name] for name in acting):
            names += acting
        return names

    # --- what is taken over -----------------------------------------------------------------------------------

    @torch.no_grad()
    def fill(self, model: nn.Module, parts: tuple[str, ...] = PARTS) -> None:
        """Copy the weights into `model`, one tensor at a time; the others stay as they are."""
        state, names = model.state_dict(), self.taken(model, parts)
        for file in WEIGHTS:
            with safe_open(self.path / file, "pt") as tensors:
                for name in (n for n in names if self.shapes[n][0] == file):
                    state[name].copy_(tensors.get_slice(name)[: len(state[name])])

    def quantiser(self, given: str = "") -> VQ | PatchVQ | VQGAN:
        """The frame quantiser of the folder. given: `vq` of a training, empty or a folder of the same one.

        Raises:
            ConfigError: the folder has none, it does not fit the vision table, or `given` is another.
        """
        for name in ("vq.json", "vq.safetensors"):
            if not (self.path / name).exists():
                raise ConfigError(f"{self.stage}: {self.path} has no {name}, the VQGAN was not imported; import again "
                                  "with --vqgan FILE")
        sizes = build(VQConfig, _json(self.path / "vq.json")["model"], source=f"{self.path}/vq.json")
        for name, mine, theirs in (("codebook_size", self.config.codebook_size, sizes.codebook_size),
                                   ("code_groups", self.config.code_groups, sizes.groups),
                                   ("grid", self.config.grid, sizes.grid)):
            if mine != theirs:
                raise ConfigError(f"{self.stage}: {name} of {self.path}/vq.json is {theirs}, of model.json {mine}; "
                                  "import again with the --vqgan of this model")
        try:
            own = load_vq(self.path)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ConfigError(f"{self.path}/vq.safetensors: unreadable ({str(error).splitlines()[0]}); "
                              "run vipra import-lwm again") from None
        if given and tokenise.quantiser_hash(load_vq(given)) != tokenise.quantiser_hash(own):
            raise ConfigError(f"{self.stage}: vq = {given} is not the quantiser of {self.path}; leave vq empty")
        return own

    def tokenizer(self, given: str = "") -> Tokenizer:
        """The text vocabulary: `given`, the path of a tokenizer.json, or that of the folder.

        Raises:
            ConfigError: there is none, or it is not the one the text table belongs to.
            TokenizerError: the file is none.
        """
        own = self.path / "tokenizer.json"
        path = Path(given) if given else own
        if not path.exists():
            raise ConfigError(f"{self.stage}: {path}: no such file; " + (
                "give LLaMA's tokenizer.json" if given else
                "import again with --tokenizer FILE, or set tokenizer to LLaMA's tokenizer.json"))
        found = open_tokenizer(path)
        table, size = self.config.text_vocab, found.get_vocab_size()
        if size > table:
            raise ConfigError(f"{self.stage}: {path} has {size} tokens, the text table of {self.path} {table}; give "
                              "LLaMA's tokenizer.json")
        for mark in (BEGIN, END):
            if found.token_to_id(mark) is None:
                raise ConfigError(f"{self.stage}: {path} knows no {mark}; give LLaMA's tokenizer.json")
        if given and own.exists():
            known = open_tokenizer(own).get_vocab()
            for text, number in found.get_vocab().items():
                if known.get(text, number) != number:
                    raise ConfigError(f"{self.stage}: {path} numbers {text!r} {number}, that of {self.path} "
                                      f"{known[text]}; leave tokenizer empty")
        return found


def load_imported(folder: str | Path, seed: int = 0) -> FlowPolicy:
    """The policy network of an imported folder in the type it was written in, after its hashes were verified.

    Parts the stream lacked (LWM itself has no action encoder and head) start random from `seed`.

    Raises:
        ConfigError: incomplete folder, or a file that changed since the import.
    """
    opened = LWMFolder.open(folder, "load_imported")
    opened.verify()
    with torch.device("meta"):
        policy = FlowPolicy(opened.config)
    policy.trunk.rotary_emb = type(policy.trunk.rotary_emb)(policy.trunk.config)
    tensors = load_file(opened.path / "policy.safetensors")
    generator = torch.Generator().manual_seed(seed)
    kind = tensors["text.weight"].dtype
    for name, value in policy.state_dict().items():
        if name not in tensors:
            # The head starts at zero, the encoder like the reference: normal of 0.02, no bias.
            random = 0.02 * torch.randn(value.shape, generator=generator)
            tensors[name] = (torch.zeros_like(random) if name.startswith("head") or "bias" in name else random).to(kind)
    policy.load_state_dict(tensors, assign=True)
    return policy.eval()


def sha256(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """Hash of a file's content, as 64 hex digits; `advance` is told the bytes of each block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); run vipra import-lwm again") from None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
