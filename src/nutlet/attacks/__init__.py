"""The attacks, one to a file; importing this package registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nutlet.attacks.base import REGISTRY, Attack
from nutlet.attacks.extraction.active_thief import ActiveThief
from nutlet.attacks.extraction.adaptive_knockoff import AdaptiveKnockoff
from nutlet.attacks.extraction.data_free import DataFree
from nutlet.attacks.extraction.jbda import JBDA
from nutlet.attacks.extraction.knockoff import Knockoff
from nutlet.attacks.extraction.semi_supervised import SemiSupervised
from nutlet.attacks.inversion.generator_inversion import GeneratorInversion
from nutlet.attacks.inversion.mi_face import MIFace
from nutlet.attacks.membership.bavaria import BaVarIA
from nutlet.attacks.membership.label_only import LabelOnly
from nutlet.attacks.membership.lira import LiRA
from nutlet.attacks.membership.loss_threshold import LossThreshold
from nutlet.attacks.membership.rmia import RMIA
from nutlet.attacks.membership.samia import SAMIA
from nutlet.attacks.membership.shadow_classifier import ShadowClassifier
from nutlet.attacks.membership.two_version import TwoVersion
from nutlet.attacks.white_box.file_leaks import FileLeaks
from nutlet.attacks.white_box.last_layer import LastLayerWidth
from nutlet.attacks.white_box.recover_weights import RecoverWeights
from nutlet.attacks.white_box.refine import Refine
from nutlet.attacks.white_box.reuse import Reuse
from nutlet.catalogue import build

__all__ = [
    "JBDA",
    "RMIA",
    "SAMIA",
    "ActiveThief",
    "AdaptiveKnockoff",
    "BaVarIA",
    "DataFree",
    "FileLeaks",
    "GeneratorInversion",
    "Knockoff",
    "LabelOnly",
    "LastLayerWidth",
    "LiRA",
    "LossThreshold",
    "MIFace",
    "RecoverWeights",
    "Refine",
    "Reuse",
    "SemiSupervised",
    "ShadowClassifier",
    "TwoVersion",
    "attack_from_dict",
    "known_attacks",
]


def known_attacks() -> dict[str, type[Attack]]:
    """Return every known attack by name: ours, and those of installed packages (entry point ``nutlet.attacks``)."""
    return REGISTRY.known()


def attack_from_dict(spec: Mapping[str, Any] | str) -> Attack:
    """Return an attack from ``{name: {option: value}}``, or from its bare name.

    Raises:
        ConfigError: unknown attack or option (the nearest name is suggested), or a bad value.
    """
    return build("attack", known_attacks(), spec)
