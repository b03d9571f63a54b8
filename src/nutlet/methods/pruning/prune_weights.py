"""Pruning of single weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nutlet.constraints.stack import constrained_weight
from nutlet.graph.scope import weighted_layers
from nutlet.methods.base import Plan, register
from nutlet.methods.pruning.criteria import Criterion, saliencies
from nutlet.methods.pruning.masks import DENSE, mask_values
from nutlet.methods.pruning.sparsifying import Sparsifying
from nutlet.training.context import Context

__all__ = ["PruneWeights"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneWeights(Sparsifying):
    """Make the weights that matter least zero, and hold them there (Han et al. 2015, arXiv:1506.02626).

    Weights are compared within a layer, or with ``global`` across layers. A layer that cannot take the pattern is left
    alone; ``sparsity`` is the share of the others.

    Args:
        criterion: ``magnitude`` is the size of a weight; ``activation`` the size times the norm of its input (Wanda,
            Sun et al. 2023, arXiv:2306.11695); ``taylor`` the first-order change of the loss (Molchanov et al. 2019,
            arXiv:1906.10771). The latter two look at the calibration examples. Or a function ``(model, layers,
            context)`` of your own, with scores of the shape of each weight
            (:data:`~nutlet.methods.pruning.own_scores.Scorer`).

    Raises:
        ConfigError: ``sparsity`` is outside [0, 1) or contradicts the pattern, or no layer can take the pattern.

    >>> PruneWeights(sparsity=0.9).to_dict()
    {'PruneWeights': {'sparsity': 0.9}}
    >>> PruneWeights(pattern="2:4", criterion="activation").to_dict()
    {'PruneWeights': {'pattern': '2:4', 'criterion': 'activation'}}
    """

    effect: ClassVar[str] = "mask"
    use_when: ClassVar[str] = "the file is compressed for download (zstd); no runtime gets faster by it"
    recoverable: ClassVar[bool] = True

    criterion: Criterion = "magnitude"

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Return the layers that are masked; the masks are values."""
        layers, notes = self.fitting(weighted_layers(model, self))
        saliency, unseen = saliencies(model, layers, self.criterion, context)
        kept, short = self.kept(model, saliency, context)
        masks = {
            # What is zero stays zero, also where a pattern or a tie would have kept it.
            name: self.positions.mask(layers[name], scores, kept[name]) & (constrained_weight(layers[name]) != 0)
            for name, scores in saliency.items()
        }
        return {"masked": list(masks), "values": mask_values(model, masks), "notes": [DENSE, *notes, *unseen, *short]}

    def remaining(self, layer: nn.Module, mask: Tensor) -> Tensor:
        """Return the largest weights, as many as the mask keeps, where size alone decides; ties as it has them."""
        if (self.criterion, self.pattern) != ("magnitude", "weight"):
            return mask
        sizes, count = constrained_weight(layer).abs(), int(mask.sum())
        least = sizes.flatten().kthvalue(sizes.numel() - count + 1).values if count else sizes.max() + 1
        return (sizes > least) | ((sizes == least) & mask)
