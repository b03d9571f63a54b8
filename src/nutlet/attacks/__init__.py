"""The attacks, one to a file; importing this package registers them."""

from nutlet.attacks.active_thief import ActiveThief
from nutlet.attacks.bavaria import BaVarIA
from nutlet.attacks.generator_inversion import GeneratorInversion
from nutlet.attacks.inversion import MIFace
from nutlet.attacks.knockoff import Knockoff
from nutlet.attacks.last_layer import LastLayerWidth
from nutlet.attacks.lira import LiRA
from nutlet.attacks.loss_threshold import LossThreshold
from nutlet.attacks.rmia import RMIA
from nutlet.attacks.samia import SAMIA
from nutlet.attacks.shadow_classifier import ShadowClassifier
from nutlet.attacks.two_version import TwoVersion

__all__ = [
    "RMIA",
    "SAMIA",
    "ActiveThief",
    "BaVarIA",
    "GeneratorInversion",
    "Knockoff",
    "LastLayerWidth",
    "LiRA",
    "LossThreshold",
    "MIFace",
    "ShadowClassifier",
    "TwoVersion",
]
