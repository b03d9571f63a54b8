"""Shadow models: what an attacker trains himself, on halves he knows, to see how members differ from others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nutlet.attacks.extraction.surrogate import fresh
from nutlet.data.examples import Augment, Examples
from nutlet.errors import ConfigError
from nutlet.jobs import Job, Result, Workers
from nutlet.options import Count, Positive, Seed, Validated
from nutlet.tasks import is_classifier
from nutlet.tasks.forward import adapt
from nutlet.tasks.predict import predict
from nutlet.training.loop import Training, supervised, train_on

__all__ = ["After", "Shadows", "alter_shadow", "halves", "nearby", "train_shadow"]

_WEIGHTS = "weights/"

After = Callable[[nn.Module, Examples, int], nn.Module]
"""``(trained model, what it was trained on, seed) -> model``: what is done to a shadow model after training."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Shadows(Validated):
    """Models trained on random halves of a pool (Shokri et al. 2017, arXiv:1610.05820; Carlini et al. 2022).

    They come in pairs that saw the two halves of one draw, so that of ``2k`` models exactly ``k`` saw each example.
    The first models of a larger number are those of a smaller one. Each is one job: with a folder in ``workers`` it is
    trained once and shared by all attacks and by all values of ``after``; without one it is trained at every call.

    Args:
        pool: candidates with targets.
        architecture: of every model; new weights are drawn for each.
        training: how each is trained; as the victim was, where the attacker knows.
        augment: applied to each batch.
        after: done to each model after its training, as the victim was compressed; None for nothing.
        seed: of the draws, the weights and the order of batches.
        noise: standard deviation of what is added to inputs for :meth:`sensitivity`, in units of normalised inputs.
        repeats: noisy copies of each input that are averaged there.
        workers: where they are trained and kept.

    Raises:
        ConfigError: a value out of range.
    """

    pool: Examples
    architecture: nn.Module
    training: Training
    augment: Augment | None = None
    after: After | None = None
    seed: Seed = 0
    noise: Positive = 0.1
    repeats: Count = 2
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if len(self.pool) < 4:
            raise ConfigError(f"the pool holds {len(self.pool)} candidates; expected at least 4 to draw halves from")

    def __call__(self, count: int) -> tuple[Tensor, Tensor]:
        """Return outputs ``(count, N, ...)`` float32 on the pool, and which half each saw, ``(count, N)`` bool.

        Of classifiers the outputs are logits.

        Raises:
            ConfigError: an odd number of models, or fewer than two.
        """
        return self._answers(count, "scores"), halves(len(self.pool), count, self.seed)

    def sensitivity(self, count: int) -> Tensor:
        """Return how much the probabilities of each classifier change near each input, ``(count, N, classes)``.

        The mean over noisy copies of ``|p(x + u) - p(x)|``, as :func:`nearby` makes them.
        """
        return self._answers(count, "sensitivity")

    def models(self, count: int) -> list[nn.Module]:
        """Return the first models as they were trained, before ``after``."""
        return [_rebuilt(self.architecture, _weights(result)) for result in self._trained(count)]

    def _answers(self, count: int, name: str) -> Tensor:
        results = self._trained(count)
        if self.after is not None:
            drawn = halves(len(self.pool), count, self.seed)
            jobs = [
                self._job(alter_shadow, index, half, {"after": self.after, "weights": _weights(result)})
                for index, (half, result) in enumerate(zip(drawn, results, strict=True))
            ]
            results = self.workers.run(jobs, "altering shadow models")
        return torch.from_numpy(np.stack([result[name] for result in results]))

    def _trained(self, count: int) -> list[Result]:
        drawn = halves(len(self.pool), count, self.seed)
        jobs = [
            self._job(train_shadow, index, half, {"training": self.training, "augment": self.augment})
            for index, half in enumerate(drawn)
        ]
        return self.workers.run(jobs, "training shadow models")

    def _job(self, function: Callable[..., Result], index: int, half: Tensor, more: dict[str, Any]) -> Job:
        arguments = {
            "pool": self.pool,
            "members": half.numpy(),
            "architecture": self.architecture,
            "seed": _seed(self.seed, 1, index),
            "noise": self.noise,
            "repeats": self.repeats,
        }
        return Job(function, arguments | more, title=f"model {index + 1}")


def train_shadow(
    *,
    pool: Examples,
    members: np.ndarray,
    architecture: nn.Module,
    training: Training,
    augment: Augment | None,
    seed: int,
    noise: float,
    repeats: int,
) -> Result:
    """Train one model on its half of the pool; return its answers to all of it, and its weights."""
    model = fresh(architecture, seed)
    adapt(model, pool.batch(slice(0, 1))[0], pool.task.output)
    train_on(model, _half(pool, members), training, supervised(pool.task), augment=augment, seed=seed)
    weights = {_WEIGHTS + name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {**_answers(model, pool, noise, repeats, seed), **weights}


def alter_shadow(
    *,
    pool: Examples,
    members: np.ndarray,
    architecture: nn.Module,
    weights: dict[str, np.ndarray],
    after: After,
    seed: int,
    noise: float,
    repeats: int,
) -> Result:
    """Do to a trained model what is done after training; return its answers to the whole pool."""
    model = after(_rebuilt(architecture, weights), _half(pool, members), seed)
    return _answers(model, pool, noise, repeats, seed)


def _half(pool: Examples, members: np.ndarray) -> Examples:
    return pool.subset(torch.from_numpy(members))


def _answers(model: nn.Module, pool: Examples, noise: float, repeats: int, seed: int) -> Result:
    scores = predict(model, pool)
    if not is_classifier(pool.task):
        return {"scores": scores.numpy()}
    confidence = scores.softmax(1)
    change = torch.zeros_like(confidence)
    for number in range(repeats):
        change += (predict(model, nearby(pool, noise, seed + number)).softmax(1) - confidence).abs()
    return {"scores": scores.numpy(), "sensitivity": (change / repeats).numpy()}


def _weights(result: Result) -> dict[str, np.ndarray]:
    return {name.removeprefix(_WEIGHTS): value for name, value in result.items() if name.startswith(_WEIGHTS)}


def _rebuilt(architecture: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
    model = copy.deepcopy(architecture)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model.eval()


def halves(candidates: int, count: int, seed: int) -> Tensor:
    """Return which candidates each of ``count`` models sees, ``(count, candidates)`` bool, in complementary pairs.

    Raises:
        ConfigError: an odd number of models, or fewer than two.

    >>> drawn = halves(6, 4, seed=0)
    >>> drawn.sum(0).tolist(), drawn.sum(1).tolist()
    ([2, 2, 2, 2, 2, 2], [3, 3, 3, 3])
    """
    if count < 2 or count % 2:
        raise ConfigError(f"found {count} shadow models; expected an even number: they come in pairs")
    members = torch.zeros(count, candidates, dtype=torch.bool)
    for pair in range(count // 2):
        order = torch.randperm(candidates, generator=torch.Generator().manual_seed(_seed(seed, 0, pair)))
        members[2 * pair, order[: candidates // 2]] = True
        members[2 * pair + 1] = ~members[2 * pair]
    return members


def nearby(pool: Examples, noise: float, seed: int) -> Examples:
    """Return the pool with Gaussian noise of standard deviation ``noise`` added to its normalised inputs."""
    x, y = pool.batch(slice(None))
    return Examples(x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)), y)


def _seed(*parts: int) -> int:
    """Mix numbers into one seed, so that neighbouring ones share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
