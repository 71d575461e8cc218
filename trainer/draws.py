"""The groups of one step: which demonstrations, drawn from the policy, with others in place of those without signal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import PartialState
from accelerate.utils import gather_object

from agent.demonstrations import Demonstration
from trainer.curriculum import Curriculum, span_of_step
from trainer.metrics import rollout_metrics
from trainer.policy import Policy
from trainer.rollout import RolloutGroup, RolloutWorker, times_before
from trainer.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn for one step.

    Attributes:
        groups: those with a signal first; may be more than asked for.
        policy_step: updates that the weights which drew them had seen.
        metrics: of the groups of all processes, with the seconds of each stage in this one.
    """

    groups: list[RolloutGroup]
    policy_step: int
    metrics: dict[str, float]


class Draws:
    """Draws groups, and tells the curriculum how they fared.

    Args:
        policy: what is drawn from.
        worker: makes the groups.
        rows: the demonstrations, as the curriculum numbers them.
        curriculum: chooses among them.
        settings: of the training.
        runner: runs the worker.
    """

    def __init__(
        self,
        policy: Policy,
        worker: RolloutWorker,
        rows: Sequence[Demonstration],
        curriculum: Curriculum,
        settings: TrainSettings,
        runner: asyncio.Runner,
    ) -> None:
        self._policy, self._worker, self._rows = policy, worker, rows
        self._curriculum, self._settings, self._runner = curriculum, settings, runner

    def draw(self, step: int, count: int) -> Draw:
        """At least `count` groups for this process, drawn from the weights as they are after `step` updates.

        Groups whose rewards are all equal are replaced by further demonstrations, `refills` times at most (dynamic
        sampling, arXiv 2503.14476). Every process draws from the same queue and learns every pass rate.
        """
        version = self._runner.run(self._policy.publish(step))
        useful: list[RolloutGroup] = []
        idle: list[RolloutGroup] = []
        seconds: dict[str, float] = {}
        s = self._settings
        reserve = span_of_step(len(self._rows), s.steps, s.groups, s.refills)
        for attempt in range(1 + self._settings.refills):
            counts: list[int] = gather_object([count - len(useful)])
            if not any(counts):
                break
            reserve -= sum(counts)
            rows, before = self._take(counts)
            groups = self._roll_out(rows, before, version.adapter, f"{step}/{attempt}")
            for name, value in self._worker.seconds.items() if rows else ():
                seconds[name] = seconds.get(name, 0.0) + value
            for row, rate in gather_object([(row, g.pass_rate) for row, g in zip(rows, groups, strict=True)]):
                self._curriculum.report(row, rate)
            useful += [group for group in groups if group.has_signal]
            idle += [group for group in groups if not group.has_signal]
        self._curriculum.pass_over(max(0, reserve))
        drawn = useful + idle
        # Of all processes together, as loss and gradient are; the seconds are this process's.
        metrics = rollout_metrics(gather_object(drawn)) | {f"seconds/{name}": value for name, value in seconds.items()}
        return Draw(drawn, version.step, metrics)

    def _take(self, counts: list[int]) -> tuple[list[int], list[int]]:
        """This process's next rows, where the processes need `counts` of them, and how often each came before in them
        all: another process may draw the same row."""
        rows = self._curriculum.take(sum(counts))
        first = sum(counts[: PartialState().process_index])
        own = slice(first, first + counts[PartialState().process_index])
        return rows[own], times_before(rows)[own]

    def _roll_out(self, rows: list[int], before: list[int], adapter: str, draw: str) -> list[RolloutGroup]:
        if not rows:
            return []
        return self._runner.run(
            self._worker.groups(
                [self._rows[row] for row in rows],
                samples=self._settings.samples,
                temperature=self._settings.temperature,
                adapter=adapter,
                draw=draw,
                before=before,
            )
        )
