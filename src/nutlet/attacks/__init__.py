"""The attacks, one to a file; importing this package registers them."""

from nutlet.attacks.active_thief import ActiveThief
from nutlet.attacks.bavaria import BaVarIA
from nutlet.attacks.jbda import JBDA
from nutlet.attacks.knockoff import Knockoff
from nutlet.attacks.lira import LiRA
from nutlet.attacks.loss_threshold import LossThreshold
from nutlet.attacks.rmia import RMIA
from nutlet.attacks.samia import SAMIA
from nutlet.attacks.semi_supervised import SemiSupervised
from nutlet.attacks.shadow_classifier import ShadowClassifier
from nutlet.attacks.two_version import TwoVersion

__all__ = [
    "JBDA",
    "RMIA",
    "SAMIA",
    "ActiveThief",
    "BaVarIA",
    "Knockoff",
    "LiRA",
    "LossThreshold",
    "SemiSupervised",
    "ShadowClassifier",
    "TwoVersion",
]
