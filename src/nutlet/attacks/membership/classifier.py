"""A small network that learns on shadow models how answers about members look."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nutlet.data.examples import Examples
from nutlet.tasks.predict import predict
from nutlet.training.loop import Training, cross_entropy, train_on

__all__ = ["learn"]

_ROWS = 60_000
"""Answers of shadow models that are learnt from; more teach such small networks nothing."""


def learn(
    build: Callable[[], nn.Module], features: Tensor, members: Tensor, asked: Tensor, *, steps: int, seed: int
) -> Tensor:
    """Return the log odds of membership, ``(N,)``, that a network trained on shadow models gives to ``asked``.

    Args:
        build: makes the network, ``(B, ...) -> (B, 2)``.
        features: of the answers of shadow models, ``(M, N, ...)``.
        members: what each was trained on, ``(M, N)`` bool.
        asked: features of the victim's answers, ``(N, ...)``.
        steps: about how many batches of 256 it is trained on.
        seed: the only source of randomness.
    """
    rows = features.flatten(0, 1)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:_ROWS]
    known = Examples(rows[chosen].float(), members.flatten()[chosen].long())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        size = min(256, len(known))
        epochs = max(1, round(steps * size / len(known)))
        settings = Training(
            epochs=epochs, lr=3e-3, batch_size=size, optimizer="adamw", weight_decay=0.01, precision="fp32"
        )
        train_on(network, known, settings, cross_entropy, seed=seed, title="training an attack model")
    odds = predict(network, Examples(asked.float(), torch.zeros(len(asked), dtype=torch.long)))
    return odds[:, 1] - odds[:, 0]
