"""TRL's SFT trainer on packed rows, with weighted tokens, an anchor to the base model, and atomic checkpoints.

TRL keeps the loop, the optimiser and the data loading. Replaced are: batches (rows end to end instead of padded, see
`trainer.sft.loss`), the loss, and the writing of checkpoints (`trainer.staging`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from agent.engine.head import Head
from trainer.devices import on_one_device
from trainer.diverging import EndsWhenDiverged
from trainer.exceptions import TrainingSettingsError
from trainer.forward import called_for
from trainer.sft.batches import IGNORED, RowCollator, mute, own_rows, unpack
from trainer.sft.data import SftRow
from trainer.sft.loss import PackedBatch, completion_hidden, objective, token_losses
from trainer.sft.settings import SftSettings
from trainer.staging import StagedCheckpoints


class DownstreamTrainer(EndsWhenDiverged, StagedCheckpoints, SFTTrainer):  # type: ignore[misc]
    """Fine-tuning on rows that are token ids already.

    The loss of an update is the sum of its weighted token losses over the number of tokens whose weight is not zero:
    with `mask` the mean over the tokens that are left, else over all completion tokens, in all processes together.

    Args:
        model: to be trained; with an adapter, the base model is the same with the adapter disabled.
        tokenizer: of the model; it tokenises nothing here.
        settings: of the fine-tuning.
        config: from `sft_config`.
        rows: to train on.
        weights: of the completion tokens of each row.
        base: the frozen base model, where a KL term is wanted and the model has no adapter.
        on_log: gets every step's metrics: (step, metrics).
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: SftSettings,
        config: SFTConfig,
        rows: Sequence[SftRow],
        weights: Sequence[Tensor],
        *,
        base: Any | None = None,
        on_log: Callable[[int, dict[str, float]], None],
    ) -> None:
        self.checkpoint_state, self.checkpoints_kept = lambda: {"rows": len(rows)}, settings.keep_checkpoints
        self._settings, self._rows, self._base, self._on_log = settings, rows, base, on_log
        self._sums = {"nll": 0.0, "kl": 0.0, "tokens": 0.0}
        self._completion_tokens = 1
        collator, use_cache = RowCollator(rows, weights), model.config.use_cache
        try:
            super().__init__(
                model=model,
                args=config,
                train_dataset=collator.dataset(),
                processing_class=tokenizer,
                data_collator=collator,
                callbacks=[_SaveEvery(settings.save_every)],
            )
        except ValueError as error:
            raise TrainingSettingsError(f"TRL refuses this fine-tuning: {error}") from error
        self.remove_callback(PrinterCallback)
        model.config.use_cache = use_cache  # transformers turns it off for training, and it is published

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """One update's passes, and how many of their tokens have a weight; see the class."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mute_repeats(samples)
        counts = torch.tensor(
            [
                sum(int((sample["labels"] != IGNORED).sum()) for sample in samples),
                sum(int(sample["completion_mask"].sum()) for sample in samples),
            ],
            device=device,
        )
        weighted, self._completion_tokens = self.accelerator.gather(counts).view(-1, 2).sum(0).tolist()
        self.update_rows = self._ids([row for sample in samples for row in sample["rows"].tolist()])
        return samples, torch.tensor(weighted, device=device)

    def _mute_repeats(self, samples: Sequence[dict[str, Tensor]]) -> None:
        """Take the weight of rows that Accelerate repeats to give every process as many passes."""
        processes, at_once = self.accelerator.num_processes, self._settings.rows_per_pass
        passes = math.ceil(math.ceil(len(self._rows) / at_once) / processes)
        an_update = self.args.gradient_accumulation_steps
        update = self.state.global_step % math.ceil(passes / an_update)
        for number, sample in enumerate(samples, update * an_update):
            pack = number * processes + self.accelerator.process_index
            mute(sample, own_rows(pack, at_once, len(self._rows)))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        batch = unpack(inputs)
        weights = inputs["weights"][0, batch.sources_T + 1]
        nll, kl = self._token_losses(model, batch)
        loss = objective(nll, weights, self._settings.loss) / max(1, int(num_items_in_batch))
        loss = loss + self._settings.kl_weight * kl.sum() / max(1, self._completion_tokens)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}", self._ids(inputs["rows"].tolist()))
        for name, value in (("nll", nll.sum()), ("kl", kl.sum()), ("tokens", nll.new_tensor(len(nll)))):
            self._sums[name] += value.item()
        scaled: Tensor = loss * self.accelerator.num_processes  # whose gradients are averaged
        return scaled

    def _token_losses(self, model: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Surprisal and KL of the completion tokens; the head is part of the forward pass that `model` is called for.

        What Accelerate wraps around a model for several processes must see every weight that gets a gradient used.
        """
        plain = self.accelerator.unwrap_model(model)
        base = self._base_hidden(plain, batch) if self._settings.kl_weight else None

        def losses(_: Tensor) -> tuple[Tensor, Tensor]:
            with self.accelerator.autocast():
                return token_losses(completion_hidden(plain, batch), Head(plain), batch.targets_T, base)

        with called_for(plain, losses):
            nll, kl = model(batch.ids_N)  # an input, as DistributedDataParallel wants one
        return nll, kl

    def _base_hidden(self, plain: Any, batch: PackedBatch) -> tuple[Tensor, Head]:
        """What the base model makes of the batch, and its head."""
        adapter_off = plain.disable_adapter() if self._base is None else contextlib.nullcontext()
        base = plain if self._base is None else self._base
        with torch.no_grad(), adapter_off:
            return completion_hidden(base, batch), Head(base, adapted=False)

    def _ids(self, rows: Sequence[int]) -> list[str]:
        return [self._rows[row].id for row in rows]

    def take_weights(self, checkpoint: Path) -> None:
        """Have the weights of the last checkpoint; transformers' `train` would make one more update from it."""
        self._load_from_checkpoint(str(checkpoint))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # the summary of the whole run has none
            mine = torch.tensor(list(self._sums.values()), dtype=torch.float64, device=self.args.device)
            nll, kl, tokens = self.accelerator.gather(mine).view(-1, 3).sum(0).tolist()
            self._sums = dict.fromkeys(self._sums, 0.0)
            logs |= {"nll": nll / max(1.0, tokens), "completion_tokens": tokens}
            if self._settings.kl_weight:
                logs["kl"] = kl / max(1.0, tokens)
        super().log(logs, start_time)
        self._on_log(self.state.global_step, logs)


class _SaveEvery(TrainerCallback):
    """Asks for a checkpoint after so many steps, and after the last."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_save = state.global_step % self._steps == 0 or state.global_step == state.max_steps
        return control


def steps_of(settings: SftSettings, rows: int, processes: int) -> int:
    """Updates of the whole fine-tuning."""
    if settings.steps is not None:
        return settings.steps
    passes = math.ceil(math.ceil(rows / settings.rows_per_pass) / processes)
    a_pass = settings.batch_rows // settings.rows_per_pass // processes
    return max(1, math.ceil(settings.epochs * math.ceil(passes / a_pass)))


def sft_config(
    settings: SftSettings, folder: Path, steps: int, processes: int, *, use_cpu: bool, autocast: bool
) -> SFTConfig:
    """TRL's configuration.

    Args:
        settings: of the fine-tuning.
        folder: checkpoints go here.
        steps: updates.
        processes: that share the rows of an update.
        use_cpu: although there may be a GPU.
        autocast: compute in bfloat16 on weights in float32.
    """
    return on_one_device(
        SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=settings.rows_per_pass,
            gradient_accumulation_steps=settings.batch_rows // settings.rows_per_pass // processes,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=round(settings.warmup * steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
            seed=settings.seed,
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            bf16=autocast,
            use_cpu=use_cpu,
            dataloader_pin_memory=not use_cpu,
        )
    )
