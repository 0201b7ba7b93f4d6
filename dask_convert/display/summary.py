"""Plans and results as text and as plain data: what `plan` and `convert` print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dask_convert.display.facts import Fact, plan_facts, result_facts, verification_facts
from dask_convert.engine.results import ConversionResult, VerificationResult
from dask_convert.planning.plans import ConversionPlan


def of_plan(plan: ConversionPlan) -> str:
    """A plan as lines of text."""
    return _lines(plan_facts(plan))


def plan_as_json(plan: ConversionPlan) -> dict[str, Any]:
    """A plan as plain data, with the sums that follow from it."""
    fields: dict[str, Any] = msgspec.to_builtins(plan)
    fields["projected"] = {
        "task_bytes": plan.task_bytes,
        "worker_bytes": plan.worker_bytes,
        "total_bytes": plan.projected_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "copied_bytes": plan.copied_bytes,
        "target_bytes": plan.target_bytes,
        "target_files": plan.target_files,
    }
    return fields


def of_result(result: ConversionResult) -> str:
    """A result as lines of text."""
    return _lines(result_facts(result))


def result_as_json(result: ConversionResult) -> dict[str, Any]:
    """A result as plain data; its plan as `plan_as_json` has it."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    return {**fields, "nnz": result.nnz, "plan": plan_as_json(result.plan)}


def of_verification(result: VerificationResult) -> str:
    """A verification that found no difference as lines of text."""
    return _lines(verification_facts(result))


def verification_as_json(result: VerificationResult) -> dict[str, Any]:
    """A verification as plain data."""
    fields: dict[str, Any] = msgspec.to_builtins(result)
    return {"equal": result.equal, **fields}


def _lines(facts: Iterable[Fact]) -> str:
    return "\n".join(
        f"  {about:<8} {said}" if inner else f"{about:<10} {said}" for about, said, inner in facts
    )
