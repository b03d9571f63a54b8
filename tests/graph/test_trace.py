"""The walk and the edits on forwards as people write them."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from nutlet.errors import ModelError
from nutlet.graph.activation_quantizers import ActivationQuantizer
from nutlet.graph.trace import InstrumentedModel, Record, Site, trace


class Scale(nn.Module):
    """An edit that anyone can redo by hand."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Functional(nn.Module):
    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scaled = scaled

    def again(self, x: Tensor) -> Tensor:
        return x * 2.0 if self.scaled else x

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(F.relu(self.fc1(x)))
        return self.again(y + self.fc2(y))


class InplaceAdd(Functional):
    def forward(self, x: Tensor) -> Tensor:
        y = self.again(F.relu(self.fc1(x)))
        z = self.fc2(y)
        z += y
        return self.again(z)


class IgnoredResult(Functional):
    def forward(self, x: Tensor) -> Tensor:
        y = self.again(F.relu(self.fc1(x)))
        z = self.fc2(y)
        z.add_(y)
        return self.again(z)


class InplaceRelu(Functional):
    def __init__(self, scaled: bool = False) -> None:
        super().__init__(scaled)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.relu(self.fc1(x)))
        return self.again(y + self.fc2(y))


class IgnoredRelu(Functional):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        y.relu_()
        y = self.again(y)
        return self.again(y + self.fc2(y))


RELU = {"InplaceRelu": "relu/relu/0"}


@pytest.mark.parametrize("kind", [Functional, InplaceAdd, IgnoredResult, InplaceRelu, IgnoredRelu])
def test_edits_reach_forward_and_gradient_as_if_written_by_hand(kind: type[Functional]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(5, 4)
    by_hand = Functional(scaled=True)
    by_hand.load_state_dict(model.state_dict())
    edits = {RELU.get(kind.__name__, "/relu/0"): Scale(), "/add/0": Scale()}
    edited = InstrumentedModel(model, trace(model, x), edits).train()
    outputs, wanted = edited(x), by_hand(x)
    torch.testing.assert_close(outputs, wanted)
    outputs.square().sum().backward()
    wanted.square().sum().backward()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad)


def test_an_in_place_call_on_the_input_of_the_model_sees_the_edited_input() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x -= 1.0
            return x * 3.0

    model, x = Centred(), torch.ones(2, 2)
    edited = InstrumentedModel(model, trace(model, x.clone()), {"/input/0": Scale(), "/sub/0": Scale(10.0)})
    torch.testing.assert_close(edited(x), torch.full((2, 2), 30.0))
    torch.testing.assert_close(x, torch.ones(2, 2))


def test_walking_does_not_write_to_the_example() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x -= 1.0
            return x

    x = torch.ones(2, 2)
    trace(Centred(), x)
    assert torch.equal(x, torch.ones(2, 2))


def test_in_place_by_keyword() -> None:
    class Keyword(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            torch.relu_(input=y)
            return y

    x = torch.tensor([[-1.0, 2.0]])
    edited = InstrumentedModel(Keyword(), trace(Keyword(), x), {"/relu/0": Scale()})
    torch.testing.assert_close(edited(x), torch.tensor([[0.0, 4.0]]))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.same = self.fc
        self.other = nn.Linear(3, 3)
        self.other.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.same(F.relu(self.fc(x))))


def test_a_reused_module_counts_its_calls_under_one_name() -> None:
    record = trace(Reused(), torch.zeros(2, 3))
    assert list(record.sites) == ["/input/0", "fc/linear/0", "/relu/0", "fc/linear/1", "other/linear/0"]
    assert record.sites["fc/linear/1"].inputs == ("/relu/0",)
    assert len(record.of_module("fc")) == 2


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Pieces(nn.Module):
    def split_pair(self, x: Tensor) -> Pair:
        return Pair(*x.chunk(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        pair = self.split_pair(x)
        first, second = torch.split(pair.left + pair.right, [1, 1], 1)
        largest = torch.max(x, 1)
        values, _ = torch.topk(x, 1)
        return torch.cat(
            [first, second, largest.values[:, None], values, *x.unbind(1)[:1][0][:, None].tensor_split(1)], 1
        )


def test_tuples_lists_and_named_tuples_are_followed_and_rebuilt() -> None:
    x = torch.arange(8.0).view(2, 4)
    record = trace(Pieces(), x)
    names = list(record.sites)
    assert [n for n in names if "/chunk/" in n] == ["/chunk/0", "/chunk/1"]
    assert [n for n in names if "/split/" in n] == ["/split/0", "/split/1"]
    assert [n for n in names if "/max/" in n] == ["/max/0"], "the indices are not a float result"
    assert record.sites["/add/0"].inputs == ("/chunk/0", "/chunk/1")
    edited = InstrumentedModel(Pieces(), record, {"/chunk/1": Scale(0.0), "/max/0": Scale()})
    plain, changed = Pieces()(x), edited(x)
    torch.testing.assert_close(changed[:, :2], x[:, :2])
    torch.testing.assert_close(changed[:, 2], plain[:, 2] * 2)
    torch.testing.assert_close(changed[:, 3:], plain[:, 3:])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs, (hidden, _) = self.lstm(x)
        return self.fc(outputs[:, -1] + hidden[-1])


def test_an_lstm_is_one_call_with_three_results() -> None:
    x = torch.randn(2, 3, 4)
    record = trace(Recurrent(), x)
    results = [n for n in record.sites if n.startswith("lstm/lstm/")]
    assert results == ["lstm/lstm/0", "lstm/lstm/1", "lstm/lstm/2"]
    model = Recurrent()
    edited = InstrumentedModel(model, record, {"lstm/lstm/1": Scale(0.0)}).train()
    outputs = edited(x)
    outputs.sum().backward()
    assert not torch.equal(outputs, edited.unwrap()(x))
    assert model.lstm.weight_ih_l0.grad is not None


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.layer(x).mean(1)


def test_attention_takes_one_path_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 3, 8)
    plain = model(x)
    record = trace(model, x)
    assert "attention/multi_head_attention_forward/0" in record.sites
    assert "layer.linear1/linear/0" in record.sites, "the fast path of evaluation hides the inner layers"
    edited = InstrumentedModel(model, record, {"layer.linear1/linear/0": nn.Identity()})
    torch.testing.assert_close(edited.eval()(x), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited.train()(x), plain, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(edited.eval()(x), plain, atol=1e-5, rtol=1e-5)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, functional: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.reentrant, self.functional = reentrant, functional

    def inner(self, x: Tensor) -> Tensor:
        if self.functional:
            return F.relu(F.linear(x, self.fc2.weight)) * x
        return F.relu(self.fc2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_refused_by_name(reentrant: bool, functional: bool) -> None:
    model, x = Checkpointed(reentrant, functional), torch.randn(2, 4)
    edited = InstrumentedModel(model, trace(model, x), {"/relu/0": Scale()}).train()
    with pytest.raises(ModelError, match="checkpointing"):
        edited(x).sum().backward()
    edited.eval()
    with torch.no_grad():
        assert edited(x).shape == (2, 4)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if float(x.sum()) > 0:
            y = y.sigmoid()
        return y.tanh()


def test_control_flow_on_data_is_refused_by_the_name_of_the_site() -> None:
    model = Branching()
    edited = InstrumentedModel(model, trace(model, torch.ones(1, 2)), {"fc/linear/0": Scale()})
    edited(torch.ones(1, 2))
    with pytest.raises(ModelError, match=r"/tanh/0.*/sigmoid/0"):
        edited(-torch.ones(1, 2))
    edited(torch.ones(1, 2))


class SkipsInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh() if not self.training else self.fc(x)


def test_control_flow_on_the_mode_is_refused_too() -> None:
    model = SkipsInTraining()
    edited = InstrumentedModel(model, trace(model, torch.ones(1, 2)), {}).train()
    with pytest.raises(ModelError, match=r"its end.*tanh"):
        edited(torch.ones(1, 2))


def test_an_error_inside_forward_leaves_nothing_behind() -> None:
    model = Functional()
    edited = InstrumentedModel(model, trace(model, torch.zeros(2, 4)), {"/relu/0": Scale()})
    with pytest.raises(RuntimeError, match="shape"):
        edited(torch.zeros(2, 5))
    assert edited(torch.zeros(2, 4)).shape == (2, 4)


def test_copies_and_pickles_work_alone() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(3, 4)
    edited = InstrumentedModel(model, trace(model, x), {"/relu/0": Scale()})
    wanted = edited(x)
    copied, thawed = copy.deepcopy(edited), pickle.loads(pickle.dumps(edited))
    for other in (copied, thawed, copy.deepcopy(thawed)):
        torch.testing.assert_close(other(x), wanted)
    with torch.no_grad():
        model.fc1.weight.zero_()
    torch.testing.assert_close(copied(x), wanted)
    bare = copied.unwrap()
    assert bare(x).shape == (3, 4), "hooks of a copy come off"
    torch.testing.assert_close(thawed(x), wanted)
    assert not bare._forward_pre_hooks
    assert all(not m._forward_hooks for m in bare.modules())


def test_two_threads_at_once() -> None:
    torch.manual_seed(0)
    model = Functional()
    x = [torch.randn(64, 4) for _ in range(2)]
    edited = InstrumentedModel(model, trace(model, x[0]), {"/relu/0": Scale(), "/add/0": Scale()})
    wanted = [edited(t) for t in x]
    failures: list[object] = []

    def work(k: int) -> None:
        try:
            for _ in range(50):
                torch.testing.assert_close(edited(x[k]), wanted[k])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Twice(nn.Module):
    """A parametrization with a module and float calls of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        parametrize.register_parametrization(self.inner, "weight", nn.Softplus())

    def forward(self, weight: Tensor) -> Tensor:
        return F.relu(self.inner(weight)) + weight


def test_what_parametrizations_compute_is_not_data_flow() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    plain = trace(model, torch.zeros(2, 3))
    parametrize.register_parametrization(model[0], "weight", Twice())
    constrained = trace(model, torch.zeros(2, 3))
    assert list(constrained.sites) == list(plain.sites)
    edited = InstrumentedModel(model, constrained, {"1/relu/0": Scale()})
    edited(torch.zeros(2, 3))
    assert model[0].weight.shape == (3, 3), "a weight can be read between two forwards"


def test_torch_export_sees_the_edits() -> None:
    model, x = Functional().eval(), torch.randn(2, 4)
    edited = InstrumentedModel(
        model, trace(model, x), {"/relu/0": ActivationQuantizer(0.1, 3), "/input/0": Scale()}
    ).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(edited, (x,), dynamic_shapes=({0: batch},))
    more = torch.randn(7, 4)
    torch.testing.assert_close(program.module()(more), edited(more))
    assert "quantize_per_tensor" in program.graph_module.code


def test_names_do_not_depend_on_mode_gradients_or_batch() -> None:
    model = Attention()
    names = list(trace(model, torch.randn(2, 3, 8)).sites)
    with torch.inference_mode():
        assert list(trace(model.train(), torch.randn(5, 3, 8)).sites) == names
    assert model.training, "the mode is put back"
    assert list(trace(copy.deepcopy(model), torch.randn(2, 3, 8)).sites) == names


def test_hooks_of_a_walk_come_off_even_when_forward_fails() -> None:
    model = Functional()
    with pytest.raises(RuntimeError, match="shape"):
        trace(model, torch.zeros(2, 5))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_an_edit_of_a_missing_site_is_refused() -> None:
    model = Functional()
    with pytest.raises(ModelError, match="no site 'fc9/linear/0'"):
        InstrumentedModel(model, trace(model, torch.zeros(1, 4)), {"fc9/linear/0": Scale()})


def test_a_record_is_data() -> None:
    one = trace(Functional(), torch.zeros(2, 4))
    two = trace(Functional(), torch.zeros(2, 4))
    assert one == two
    assert isinstance(one, Record)
    assert all(isinstance(site, Site) for site in one.sites.values())
    assert pickle.loads(pickle.dumps(one)) == one
    assert [s.name for s in one.consumers("/relu/0")] == ["fc2/linear/0", "/add/0"]
