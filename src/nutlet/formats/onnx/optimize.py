"""The clean-up of a traced graph: what torch does after tracing, without the work that cannot change anything."""

from __future__ import annotations

from typing import Any

__all__ = ["optimize"]

_FOLDED = 256
"""Constants of more elements are not computed with beforehand: they are weights, stored in few bits."""
_ROUNDS = 2


def optimize(model: Any) -> None:
    """Fold constants, rewrite, and remove what is not used or stands there twice; in place.

    The passes are those of ``onnxscript.optimizer.optimize_ir`` in its order, but that weights stay as they are stored,
    and a rule is tried only where the graph has the operator that its pattern ends in: most rules of the exporter are
    for operators that a given network does not have, and trying them all at every node took half of an export.

    Args:
        model: an ``onnx_ir.Model``.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import _constant_folding

    class Rewrite(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result: ir.passes.PassResult = _rewrite(model)
            return result

    once = [
        _constant_folding.FoldConstantsPass(
            shape_inference=True,
            input_size_limit=_FOLDED,
            output_size_limit=_constant_folding.DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
        ),
        Rewrite(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]
    ir.passes.Sequential(
        common.InlinePass(),
        ir.passes.PassManager(once, steps=_ROUNDS, early_stop=True),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _rewrite(model: Any) -> Any:
    import onnx_ir as ir
    from onnxscript import rewriter

    present = {node.op_type for node in model.graph.all_nodes()}
    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if _last_operators(rule) <= present]
    return rewriter.RewritePass(rules)(model) if rules else ir.passes.PassResult(model, modified=False)


def _last_operators(rule: Any) -> set[str]:
    """Return the operators in which a match of ``rule`` ends; none where its pattern leaves them open."""
    kinds = [node.op_identifier() for node in rule._target_pattern.output_nodes]
    return {kind[1] for kind in kinds if kind is not None}
