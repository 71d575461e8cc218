"""TRL's GRPO trainer, with this package's roll-outs, packed log-probabilities and atomic checkpoints.

TRL keeps the loss, the advantages, the optimiser and the loop. Replaced are: generation (`rollout_func`, through the
engine), the log-probabilities (`trainer.packing`: a shared prompt is computed once, not once a completion), the
shuffling of samples inside a generation (groups stay whole), the warm-up of the learning rate (`trainer.schedule`), and
the writing of checkpoints (`trainer.staging`). Added is the correction for an engine that has a copy of the model to
itself (`trainer.importance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from trainer.devices import on_one_device
from trainer.diverging import EndsWhenDiverged
from trainer.importance import correction_metrics, kl_terms, truncated_weights
from trainer.packing import completion_logprobs
from trainer.rollout import RolloutGroup
from trainer.schedule import rate_factor
from trainer.settings import TrainSettings
from trainer.staging import StagedCheckpoints

Collect = Callable[[int, int], list[RolloutGroup]]

# Means over tokens, which TRL logs as 0 of a pass that has none.
_OVER_TOKENS = ("entropy", "clip_ratio/low_mean", "clip_ratio/high_mean")


class RewriteTrainer(EndsWhenDiverged, StagedCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """GRPO on the rewriting agent's LoRA.

    Args:
        policy: the frozen base model with the adapter to train.
        tokenizer: of the base model.
        settings: of the training.
        folder: checkpoints go here, as `checkpoint-<step>`.
        collect: makes this process's groups of a step: (step, how many) to groups, in which order ever.
        state: what a checkpoint must hold besides weights and optimiser.
        on_log: gets every step's metrics: (step, metrics).
        callbacks: of the loop.
        stop_ids: tokens that end a completion, as the engine knows them.
        max_tokens: the longest completion that a roll-out may have.
        correct: weight tokens by how likely they are in `policy` over what the engine reports to have drawn them with.
        measures_kl: whether a step's KL divergence from the base model is logged, which costs a pass without gradients.
        processes: data-parallel processes that share a step's groups.
    """

    def __init__(
        self,
        policy: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainSettings,
        folder: Path,
        *,
        collect: Collect,
        state: Callable[[], dict[str, Any]],
        on_log: Callable[[int, dict[str, float]], None],
        callbacks: list[TrainerCallback],
        stop_ids: frozenset[int],
        max_tokens: int,
        correct: bool = False,
        measures_kl: Callable[[int], bool] = lambda _: False,
        processes: int = 1,
    ) -> None:
        self._collect, self._measures_kl, self._on_log, self._correct = collect, measures_kl, on_log, correct
        self.checkpoint_state, self.checkpoints_kept = state, settings.keep_checkpoints
        self._passes: list[dict[str, Tensor | None]] = []
        self._rate = partial(rate_factor, optimizer=settings.optimizer, updates=settings.optimizer_steps)
        groups = settings.groups // processes
        # Demonstrations are chosen when a step begins (curriculum, refills): TRL only counts these rows.
        rows = settings.steps * settings.groups
        super().__init__(
            model=policy,
            reward_funcs=[_reward_of_rollout],
            args=grpo_config(settings, folder, groups, max_tokens, use_cpu=policy.device.type == "cpu"),
            train_dataset=Dataset.from_dict({"prompt": [str(row) for row in range(rows)]}),
            processing_class=tokenizer,
            rollout_func=self._roll_out,
            callbacks=callbacks,
        )
        # A completion that ends otherwise counts as cut off; the chat template may end turns with a token of its own.
        self.eos_token_ids = sorted(stop_ids)
        self.remove_callback(PrinterCallback)
        if "ref" in policy.peft_config:
            # Without this copy TRL takes the model with its adapter disabled as reference: the base model itself.
            policy.delete_adapter("ref")

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """See `trainer.schedule`. Called by the loop, before a checkpoint's state is restored."""
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self._rate)
        return self.lr_scheduler

    def _roll_out(self, prompts: list[str], _: GRPOTrainer) -> dict[str, list[Any]]:
        groups = self._collect(self.state.global_step, len(prompts) // self.num_generations)
        self.update_rows = [group.demonstration.id for group in groups]
        rewrites = [(group, i) for group in groups for i in range(len(group.rewrites))]
        return {
            "prompt_ids": [group.prompt_ids for group, _ in rewrites],
            "completion_ids": [group.rewrites[i].completion.ids for group, i in rewrites],
            "logprobs": [group.rewrites[i].completion.logprobs for group, i in rewrites],
            "rollout_reward": [group.reward.reward[i] for group, i in rewrites],
        }

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        passes = self.args.steps_per_generation
        if self._step % (passes * self.num_iterations) == 0 or not self._passes:
            samples = self._generate_and_score_completions(generation_batch)
            self._passes = split_tensor_dict(self._corrected(samples) if self._correct else samples, passes)
        return self._passes[self._step % passes]

    def _corrected(self, samples: dict[str, Any]) -> dict[str, Any]:
        """The samples with the advantage of each token, (B, C), weighted by `truncated_weights`."""
        mask, drawn = self._trained_on(samples), samples["sampling_per_token_logps"]
        trained = samples.get("old_per_token_logps")
        if trained is None:
            trained = self._logprobs_of(samples, mask)
        for name, value in correction_metrics(trained, drawn, mask).items():
            self._metrics["train"][name].append(value)
        return samples | {"advantages": samples["advantages"][:, None] * truncated_weights(trained, drawn, mask)}

    def _logprobs_of(self, samples: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Log-probabilities of completion tokens as the model is now, (B, C), nats, without gradients."""
        with torch.no_grad():
            logprobs, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([samples["prompt_ids"], samples["completion_ids"]], dim=1),
                torch.cat([samples["prompt_mask"], mask], dim=1),
                mask.shape[1],
                self.args.per_device_train_batch_size,
            )
        return logprobs

    def _trained_on(self, samples: dict[str, Tensor]) -> Tensor:
        """1 at the completion tokens that the loss can learn from, (B, C)."""
        if self.beta:
            return samples["completion_mask"]
        # Without a KL term a rewrite of no advantage has no gradient: it need not be computed.
        advantages = samples["advantages"]
        return samples["completion_mask"] * advantages.reshape(len(advantages), -1).any(dim=1)[:, None]

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        mask = self._trained_on(inputs)
        base = None
        if not self.beta and self._measures_kl(self.state.global_step):  # with a KL term TRL logs it
            with self.model.disable_adapter():
                base = self._logprobs_of(inputs, mask)
        loss: Tensor = super()._compute_loss(model, inputs | {"completion_mask": mask})
        kl = mask.new_zeros(()) if base is None else kl_terms(self._logprobs, base)[mask.bool()].sum()
        total, tokens = self.accelerator.reduce(torch.stack([kl.float(), mask.sum().float()]), reduction="sum").tolist()
        metrics = self._metrics["train"]
        if base is not None and tokens:
            metrics["kl"].append(total / tokens)
        if not tokens:
            for name in _OVER_TOKENS:
                metrics[name][-1] = math.nan  # which the mean over the passes leaves out
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Log-probabilities and entropies of completion tokens, (B, C), nats; zero where masked."""
        size = batch_size or len(input_ids)
        parts = [
            self._packed_logprobs(model, input_ids[i : i + size], attention_mask[i : i + size], logits_to_keep)
            for i in range(0, len(input_ids), size)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        together = torch.cat(logprobs)
        self._logprobs = together.detach()
        return together, torch.cat(entropies), None

    def _packed_logprobs(self, model: Any, ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
        completion_mask = mask[:, -width:]
        if not completion_mask.any():
            # The loss masks this token out, but every process takes part in every pass.
            completion_mask = completion_mask.clone()
            completion_mask[0, 0] = 1
        return completion_logprobs(
            model, ids[:, :-width], mask[:, :-width], ids[:, -width:], completion_mask, self.temperature
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        self._on_log(self.state.global_step, logs)


def grpo_config(settings: TrainSettings, folder: Path, groups: int, max_tokens: int, *, use_cpu: bool) -> GRPOConfig:
    """TRL's configuration for `groups` groups a step on this process, of completions of at most `max_tokens`.

    `use_cpu` is said, since TRL would take a GPU that it sees and move the engine's model there.
    """
    optimizer = settings.optimizer
    passes = groups // optimizer.groups_per_pass
    sequence_level = optimizer.loss == "gspo"
    return on_one_device(
        GRPOConfig(
            output_dir=str(folder),
            max_steps=settings.optimizer_steps,
            num_generations=settings.samples,
            per_device_train_batch_size=optimizer.groups_per_pass * settings.samples,
            gradient_accumulation_steps=passes // optimizer.updates_per_rollout,
            steps_per_generation=passes,
            shuffle_dataset=False,
            max_completion_length=max_tokens,
            temperature=settings.temperature,
            mask_truncated_completions=optimizer.mask_truncated,
            loss_type="grpo" if sequence_level else optimizer.loss,
            importance_sampling_level="sequence" if sequence_level else "token",
            scale_rewards=optimizer.scale_rewards,
            beta=optimizer.beta,
            epsilon=optimizer.epsilon,
            epsilon_high=optimizer.epsilon_high,
            learning_rate=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.max_grad_norm,
            gradient_checkpointing=optimizer.gradient_checkpointing,
            seed=settings.seed,
            ignore_data_skip=True,
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            bf16=False,
            use_cpu=use_cpu,
            dataloader_pin_memory=not use_cpu,
            disable_dropout=True,  # the engine draws from the very model, whatever mode the trainer left it in
        )
    )


def _reward_of_rollout(rollout_reward: list[float], **_: Any) -> list[float]:
    """The rewards were computed with the roll-outs, over whole groups."""
    return rollout_reward
