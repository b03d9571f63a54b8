"""Channels that go together, followed through any forward by numbers that lie beside its tensors.

One walk carries, beside each tensor, the numbers of its channels (:mod:`~nutlet.graph.coupling.numbers`). Each call
has a rule of what becomes of them (:mod:`~nutlet.graph.coupling.rules`); what meets is joined and can only go together.
A second walk, through a thinner copy, checks that every call gets the channels it expects. The thinner model has to
answer like the whole one in which nothing reads those channels (:mod:`~nutlet.graph.coupling.silence`).
"""
