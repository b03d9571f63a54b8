"""Examples that stay where they are: read from a data set batch by batch, never copied whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from nutlet.data.arrays import as_tensor
from nutlet.data.examples import Examples, as_input, check_numbers, chosen_target
from nutlet.errors import ConfigError, DataError, first_line
from nutlet.tasks import CLASSIFICATION, Task, as_task
from nutlet.tasks.inputs import NamedInputs, input_shapes
from nutlet.tasks.targets import has_target

__all__ = ["Streamed"]


class Streamed(Examples):
    """Examples of a :class:`torch.utils.data.Dataset`, or of the one behind a :class:`~torch.utils.data.DataLoader`.

    The data set gives ``(input, target)`` for a number, each a tensor, an array or a dict of them, without a batch
    dimension; it does all normalisation itself. Which examples make a batch, and their order, is decided here: of a
    loader its ``collate_fn`` is used (to pad sequences, say) and nothing else.

    What asks for :attr:`x` or :attr:`y` reads everything into memory; compressing and measuring do not.

    Args:
        source: has a length and gives examples by number.
        task: what the targets mean.

    Raises:
        ConfigError: it has no length or gives no examples by number.
        DataError: an example cannot be read, see :meth:`batch`.

    >>> from torch.utils.data import TensorDataset
    >>> examples = Streamed(TensorDataset(torch.rand(5, 3), torch.arange(5)))
    >>> len(examples), examples.batch([4, 0])[1]
    (5, tensor([4, 0]))
    """

    def __init__(self, source: Dataset[Any] | DataLoader[Any], task: Task | str = CLASSIFICATION) -> None:
        collate: Callable[[list[Any]], Any] = default_collate
        data: Any = source
        if isinstance(source, DataLoader):
            data, collate = source.dataset, source.collate_fn
        if isinstance(data, IterableDataset) or not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
            raise ConfigError(
                f"the data set is a {type(data).__name__}, which has no length or gives no example by its number; "
                "expected a map-style torch.utils.data.Dataset, with __len__ and __getitem__: training draws examples "
                "in an order of its own"
            )
        self._set(data, collate, torch.arange(len(data)), as_task(task), None)
        if len(self) == 0:
            raise DataError("found no examples; expected at least one")
        self.batch(slice(0, 2))  # what is wrong with all of them is said at once

    def _set(
        self, data: Any, collate: Callable[[list[Any]], Any], rows: Tensor, task: Task, targets: Tensor | None
    ) -> None:
        # Examples is a frozen dataclass; x and y are read when somebody asks for them.
        values = {"data": data, "collate": collate, "rows": rows, "task": task, "targets": targets}
        for name, value in (values | {"mean": (), "std": ()}).items():
            object.__setattr__(self, name, value)

    data: Any
    collate: Callable[[list[Any]], Any]
    rows: Tensor
    targets: Tensor | None

    @property
    def x(self) -> Any:
        """All inputs, in memory."""
        return self.batch(slice(None))[0]

    @property
    def y(self) -> Tensor:
        """All targets, in memory."""
        return self.batch(slice(None))[1] if self.targets is None else self.targets

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labelled(self) -> bool:
        """Whether every example has a target; one pass over the data."""
        return all(bool(has_target(y).all()) for _, y in self.batches())

    @property
    def classes(self) -> int:
        """One more than the largest label; one pass over the data."""
        return max(0 if y.is_floating_point() else int(y.max()) + 1 for _, y in self.batches())

    def only_label(self) -> int | None:
        """Return the class of all examples where there are several of one class; a pass until a second one is seen."""
        seen: set[int] = set()
        for _, y in self.batches(32):
            seen.update(y.tolist())
            if len(seen) > 1:
                return None
        return seen.pop() if len(self) > 1 and min(seen) >= 0 else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one example of each input."""
        return input_shapes(self.batch(slice(0, 1))[0])

    def batch(self, indices: list[int] | Tensor | slice) -> tuple[Any, Tensor]:
        """Return inputs ``(B, ...)`` and targets ``(B, ...)``.

        Raises:
            DataError: the data set raises, gives something else than an input and a target, examples of several shapes
                that its loader does not pad, or targets of another task.
        """
        rows = self.rows[indices].tolist()
        try:
            # The last row that was asked for is the one that failed.
            items = []
            for row in rows:
                items.append(self.data[row])
        except Exception as error:  # the data set is the user's code
            raise DataError(
                f"the data set raised {type(error).__name__} at example {row}: {first_line(error)}; expected "
                "(input, target) for every number below its length"
            ) from error
        try:
            made = self.collate(items)
        except Exception as error:  # so is the function that makes a batch
            if any(type(_input(item)).__module__.startswith("PIL.") for item in items):
                raise DataError(
                    "the data set gives images of Pillow; expected tensors or arrays: give it a transform, as "
                    "torchvision.transforms.ToTensor()"
                ) from error
            shapes = sorted({str(_shape(item)) for item in items})[:4]
            raise DataError(
                f"examples {rows[0]} to {rows[-1]} do not make a batch ({type(error).__name__}: {first_line(error)}), "
                f"their inputs have the shapes {', '.join(shapes)}; expected one shape: pad or cut sequences, in the "
                "data set or in the collate_fn of a DataLoader"
            ) from error
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise DataError(
                f"the data set gives a {type(made).__name__}{f' of {len(made)}' if isinstance(made, Sized) else ''}; "
                "expected (input, target)"
            )
        x = made[0]
        inputs = (
            NamedInputs({name: as_input(as_tensor(value, f"inputs {name!r}"), name) for name, value in x.items()})
            if isinstance(x, Mapping)
            else self._normalised(as_input(as_tensor(x, "inputs")))
        )
        targets = self.task.as_targets(as_tensor(chosen_target(made[1], self.task), "labels"))
        check_numbers(inputs, targets)
        return inputs, targets if self.targets is None else self.targets[indices]

    def batches(self, size: int = 500) -> Iterator[tuple[Any, Tensor]]:
        """Yield all examples in order, ``size`` at a time; no more than those are in memory."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def subset(self, indices: Tensor | slice) -> Streamed:
        """Return the examples at ``indices``, which stay where they are."""
        part = object.__new__(Streamed)
        kept = None if self.targets is None else self.targets[indices]
        part._set(self.data, self.collate, self.rows[indices], self.task, kept)
        return part

    def with_targets(self, y: Tensor) -> Streamed:
        """Return the same inputs with other targets."""
        part = object.__new__(Streamed)
        part._set(self.data, self.collate, self.rows, self.task, y)
        return part


def _input(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) and item else item


def _shape(item: Any) -> Any:
    x = _input(item)
    if isinstance(x, Mapping):
        return {name: tuple(getattr(value, "shape", ())) for name, value in x.items()}
    return tuple(getattr(x, "shape", ()))
