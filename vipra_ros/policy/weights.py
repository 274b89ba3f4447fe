"""What the trunk's matrices are kept in, by name; `quantise.py` does it. Needs no torch."""

from __future__ import annotations

from vipra_ros.config import ConfigError

#: full: as the checkpoint has them. int8, fp8 (e4m3): 8 bits with a scale per output channel, products with the
#: activations as they are. int8_dynamic, fp8_dynamic: the activations in 8 bits too, with a scale per token, and the
#: product in that type.
WEIGHTS = ("full", "int8", "fp8", "int8_dynamic", "fp8_dynamic")
#: Engines whose matrices can be kept so; auto becomes torch.
ENGINES_OF_8_BITS = ("auto", "torch", "static")


def check_weights(weights: str, engine: str = "torch", rtc: str = "none") -> None:
    """Refuse a name that is none, and what does not compute with such matrices.

    Raises:
        ConfigError: with the remedy.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights = {weights!r}: choose {', '.join(map(repr, WEIGHTS))}")
    if weights == "full":
        return
    if engine not in ENGINES_OF_8_BITS:
        raise ConfigError(f"weights = {weights!r} with engine = {engine!r}, which computes with full ones: choose "
                          "engine 'torch' or 'static', or weights 'full'")
    if rtc == "guided" and weights.endswith("_dynamic"):
        raise ConfigError(f"weights = {weights!r} with rtc = 'guided', which goes backwards through the products; "
                          f"rounded activations have no gradient: choose weights {weights.removesuffix('_dynamic')!r}")
