"""`AlignTrainer`: trains a vision-language model with any objective of the contract."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import datasets
import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from mllm_align.contract import Batch, Objective, Outcome, Signals
from mllm_align.data.collator import AlignCollator
from mllm_align.families import family_of, unwrap
from mllm_align.models.adapters import disable_dropout
from mllm_align.models.identity import base_probe
from mllm_align.signals import EngineOptions, Reference
from mllm_align.signals.cached_reference import CachedReference
from mllm_align.signals.features import check_features
from mllm_align.trainers import caches, checkpoint, heads, loader, setup
from mllm_align.trainers.averaged import averaged_weights
from mllm_align.trainers.compile import compile_layers, not_the_whole
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.data import join_sources, label_sources, named_datasets, refuse_bad_data, rows_per_source
from mllm_align.trainers.draws import settle_draws
from mllm_align.trainers.gradient_cache import cached_step
from mllm_align.trainers.guard import check_gradients, check_trainable
from mllm_align.trainers.master_weights import with_master_weights
from mllm_align.trainers.metrics import Averages, means, weighted_loss
from mllm_align.trainers.optimizer import learning_rates_by_part, learning_rates_of
from mllm_align.trainers.plain_step import measured
from mllm_align.trainers.planner import plan_memory
from mllm_align.trainers.precompute import ReferenceScorer
from mllm_align.trainers.redirect import inside_forward
from mllm_align.trainers.save import facts_of_experts, save_beside_model, write_card
from mllm_align.trainers.teachers import Teachers
from mllm_align.trainers.term_gradients import TermGradients
from mllm_align.trainers.throughput import TokenRate
from mllm_align.trainers.window import Window, plan_window

Data: TypeAlias = datasets.Dataset | datasets.IterableDataset


class AlignTrainer(Trainer):
    """Trains a vision-language model with an objective.

    Args:
        model: A loaded model (plain, quantised, or with adapters), or a Hub id or folder.
        objective: What to train for: any object with `needs` and a call, `Weighted(...)` for several. One that is an
            `nn.Module` is trained, checkpointed and restored with the model.
        args: Settings; `AlignConfig()` by default.
        processing_class: The model's processor; loaded from the model's own folder if left out.
        train_dataset: Canonical rows (`image` or `images`, `prompt`, `chosen`, ...; see `mllm_align.data.schema`), or
            a dict of datasets by source name, which are mixed.
        eval_dataset: Likewise; the datasets of a dict are evaluated one by one, as `eval_NAME_...`.
        peft_config: A new adapter is attached. Without target modules it goes on the language model.
        ref_model: The reference, where the objective wants one. By default the same model with its adapters off, or
            a frozen copy of a model without adapters.
        callbacks: As in `transformers.Trainer`.
        optimizers: An optimiser and a schedule of your own; then learning rates by part are yours too.
        recipe: Text that describes the run; saved as `recipe.yaml` and shown in the model card.

    Raises:
        ValueError: If model, processor, data and objective do not fit together; each message says how to mend it.

    Example:
        >>> from mllm_align.objectives import DPO
        >>> trainer = AlignTrainer("llava-hf/llava-1.5-7b-hf", DPO(), AlignConfig("out"), train_dataset=pairs,
        ...     peft_config=LoraConfig())  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP

    Losses are sums divided by global counts: neither the number of processes, nor gradient accumulation, nor the
    model's own convention of scaling its loss changes what is optimised.
    """

    args: AlignConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    # The loss is normalised over the whole accumulation window here.
    loss_is_scaled_for_ga = True
    _tag_names = ("mllm-align",)

    def __init__(
        self,
        model: str | nn.Module,
        objective: Objective,
        args: AlignConfig | None = None,
        *,
        processing_class: Any = None,
        train_dataset: Data | Mapping[str, Data] | None = None,
        eval_dataset: Data | Mapping[str, Data] | None = None,
        peft_config: PeftConfig | None = None,
        ref_model: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        recipe: str | None = None,
    ) -> None:
        """Puts the parts together and checks that they fit; see the class."""
        args = args or AlignConfig("runs/align")
        check_features(objective.needs.features)
        setup.use_one_device(args)
        loaded, processor = setup.resolve_model(model, processing_class, args.model_init_kwargs, args.device)
        self.base_name: str = getattr(unwrap(loaded), "name_or_path", "") or ""
        self.base_probe = base_probe(loaded)
        policy = setup.apply_peft(loaded, peft_config, processor)
        check_trainable(policy)
        setup.warn_of_settings(policy, args, own_optimizer=optimizers[0] is not None)
        if args.disable_dropout:
            disable_dropout(policy)
        self.objective = objective
        self.teachers = Teachers(args, objective)
        self.experts = facts_of_experts(
            heads.make_ready(objective, policy, self.teachers.widths, args.device), self.teachers
        )
        self.reference: Reference | CachedReference | None = setup.resolve_reference(
            policy, objective, ref_model, once=args.precompute_ref_log_probs
        )
        if isinstance(self.reference, setup.FrozenCopy):
            self.reference.model.to(args.device)
        family = family_of(policy)
        collator = AlignCollator(
            processor,
            setup.NeedsOfSources(objective),
            family.image_keys,
            family.token_keys,
            max_length=args.max_length,
            on_overflow=args.on_overflow,  # type: ignore[arg-type]
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
            pixel_cache=caches.pixel_folder(args),
            region_weights=setup.region_weights(policy, processor, args.region_pooling),
            ask_teacher=self.teachers if self.teachers.features else None,
            replace=setup.soft_replacements(processor, objective),
        )
        train, evaluation = settle_draws(
            args, objective, join_sources(train_dataset, args.shares), label_sources(eval_dataset)
        )
        recorder = loader.length_recorder(args, collator, train)
        refuse_bad_data(
            objective,
            collator,
            train,
            evaluation,
            check_rows=args.check_data,
            progress=not args.disable_tqdm,
            lengths=recorder,
        )
        self.decisions = plan_memory(args, policy, objective, self.reference, collator, train)
        self._precomputes = caches.check_precompute(args, objective, train, evaluation)
        self._scorer: ReferenceScorer | None = None
        self.source_rows = rows_per_source(train)
        self.recipe = recipe
        self.options = EngineOptions(
            packing=args.packing,
            logits_chunk_size=args.logits_chunk_size,
            max_tokens_per_forward=args.max_tokens_per_forward,
            recompute_without_image=args.recompute_without_image,
            feature_cache=caches.feature_cache(args, policy),
            encoder_cache=caches.encoder_cache(args, policy),
        )
        self.sampler = loader.sampler_of(args, recorder, train, policy, self.options, objective)
        self._window = Window()
        self.together = setup.sees_all_ranks(args, objective)
        setup.check_lone_rows(args, objective)
        self._averages, self._eval_averages = Averages(), Averages()
        self._term_gradients = TermGradients(args.log_term_gradients_every)
        self._weights: dict[str, float] = {}
        self.checked_terms: set[str] = set()
        self._owns_output_dir = False
        self._rate = TokenRate()
        super().__init__(
            model=policy,
            args=args,
            data_collator=collator,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.averaged = averaged_weights(policy, objective.needs.features, bool(args.deepspeed))
        setup.refuse_sharded(self)
        if self.averaged is not None:
            self.add_callback(self.averaged)
        if args.torch_compile:
            frozen = self.reference.model if isinstance(self.reference, setup.FrozenCopy) else None
            for part in filter(None, (policy, frozen)):
                compile_layers(part, args.torch_compile_backend or "inductor", args.torch_compile_mode)
        checkpointing = args.activation_checkpointing_kwargs if args.activation_checkpointing else None
        if isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"):
            policy.enable_input_require_grads()

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        return not_the_whole(super()._build_accelerator_args(**kwargs))

    def get_train_dataloader(self) -> Any:
        """Batches that are mined, by tokens, clusters or shares, as settings say; else those of `transformers`."""
        return loader.train_loader(self, self.sampler, super().get_train_dataloader)

    # -- the loss ----------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """The micro-batches of one optimiser step; what their terms are divided by is settled here."""
        self._rate.start(self.state.num_input_tokens_seen)
        samples = []
        for _ in range(num_batches):
            try:
                samples.append(next(epoch_iterator))
            except StopIteration:
                break
        width = unwrap(self.model).config.get_text_config().hidden_size
        batches = [sample["batch"] for sample in samples]
        self._window = plan_window(self.objective, batches, width, together=self.together)
        self.state.num_input_tokens_seen += self._window.tokens
        for parameter in heads.trained_parameters(self.objective):
            parameter.grad = None
        return samples, None

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"batch": inputs["batch"].to(self.args.device, non_blocking=True)}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; the objective's own gradients are averaged over ranks with the model's."""
        with heads.mode(self.objective, training=True):
            if self.args.cache_gradients:
                model.train()
                loss = cached_step(self, model, self._prepare_inputs(inputs)["batch"])
            else:
                loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.args.world_size > 1:
            heads.average_gradients(self.objective, self.args.world_size)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This batch's share of the loss of the whole window, times the number of ranks, over which DDP averages."""
        batch: Batch = inputs["batch"]
        outcome, policy, zero = inside_forward(model, lambda: measured(self, batch))
        if zero is not None and not batch.is_idle:
            check_gradients(outcome, heads.ends_of(self.model, self.objective), self.checked_terms)
        self.count(outcome, policy, len(batch))
        loss = self.share_of(outcome)
        for norm in self._term_gradients.measure(self, outcome, self._window.counts):
            self._averages.add(*norm)
        # Every rank must use every trained parameter, whatever its rows hold: DDP waits for all of them.
        if zero is not None and (self.args.world_size > 1 or not loss.requires_grad):
            loss = loss + zero
        return (loss, outcome) if return_outputs else loss

    def count(self, outcome: Outcome, policy: Signals, num_rows: int) -> None:
        """Adds a training batch to what is logged next."""
        self._averages.add_outcome(outcome, num_rows)
        self._averages.add_logps(policy, outcome)

    def share_of(self, outcome: Outcome) -> Tensor:
        """0-d: a batch's part of the loss of the window, times the number of ranks, over which DDP averages."""
        return self._window.loss(outcome) * self.args.world_size

    # -- the optimiser -----------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of `transformers`, with a learning rate for each part that has its own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        named = (model or self.model).named_parameters()
        learning_rates_by_part(optimizer, named, family_of(self.model), heads.as_module(self.objective), self.args)
        return with_master_weights(self, optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        own = heads.trained_parameters(self.objective)
        if not own:
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_([*model.parameters(), *own], self.args.max_grad_norm)

    # -- the run -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the newest complete one of the output folder.
            **kwargs: Handed on.

        Raises:
            ValueError: If the output folder has something in it and the run neither resumes nor may overwrite it, or
                there is nothing to resume from.
        """
        resume = resume_from_checkpoint or self.args.resume_from_checkpoint
        if resume:
            resume = checkpoint.last_complete_checkpoint(self.args.output_folder) if resume is True else str(resume)
        elif not self._owns_output_dir:
            checkpoint.claim_output_dir(
                self.args.output_folder,
                overwrite=self.args.overwrite_output_dir,
                main_process=self.is_world_process_zero(),
            )
        self.accelerator.wait_for_everyone()
        self._owns_output_dir = True
        if self.args.world_size > 1:
            heads.share(self.objective, self.averaged)
        for name, dataset in named_datasets(self.train_dataset, self.eval_dataset):
            self._precompute(dataset, name)
        if self._scorer is not None:
            self._scorer.let_go()
        self._averages.reset()
        self._rate.reset()
        return super().train(resume_from_checkpoint=resume or None, **kwargs)

    def _precompute(self, dataset: Any, name: str) -> None:
        """Scores a dataset under the reference, once; from then on the reference is what is on disk."""
        if not self._precomputes:
            return
        if self._scorer is None:
            live: Any = self.reference
            self.reference = caches.cached_reference(self.args, live, self.model)
            self._scorer = ReferenceScorer(self, live, self.reference)
        self._scorer.score(dataset, name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_deepspeed_enabled or not checkpoint.load_whole_model(model or self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoint.load_beside_model(self, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            if not self.is_deepspeed_enabled:
                checkpoint.load_whole_model(self.model, self.state.best_model_checkpoint)
            checkpoint.load_objective(self.objective, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_beside_model(self, output_dir or self.args.output_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model card; what it says comes from the run itself."""
        if self.is_world_process_zero():
            write_card(self, self.args.output_folder)

    # -- the log -----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to a training line: every term and metric (means over rows since the last line), tokens, rates."""
        if "loss" in logs and "learning_rate" in logs and self.optimizer is not None:
            logs.update(means(self._averages.totals()))
            self._averages.reset()
            seen = self.state.num_input_tokens_seen
            logs |= {"num_tokens": seen, "tokens_per_second": self._rate.read(seen)}
            rates = learning_rates_of(self.optimizer)
            logs.update({f"learning_rate/{part}": rate for part, rate in rates.items()})
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Nothing: tokens are counted with the window."""

    # -- evaluation --------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """A loader that shows every row once; see `loader.eval_loader`."""
        make = functools.partial(super().get_eval_dataloader, eval_dataset)
        return loader.eval_loader(self, self.eval_dataset if eval_dataset is None else eval_dataset, make)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, None, None]:
        """Measures one batch; the numbers are added up over the whole dataset, not averaged over batches."""
        batch: Batch = self._prepare_inputs(inputs)["batch"]
        with torch.no_grad(), heads.mode(self.objective, training=False):
            outcome, policy, _ = measured(self, batch)
        self._eval_averages.add_outcome(outcome, len(batch))
        self._eval_averages.add_logps(policy, outcome)
        self._weights.update({term.name: term.weight for term in outcome.terms})
        return None, None, None

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Adds the loss and every metric over all rows of all ranks."""
        self._precompute(dataloader.dataset, metric_key_prefix)
        self._eval_averages.reset()
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        totals = self._eval_averages.totals()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means(totals).items()}
        metrics[f"{metric_key_prefix}_loss"] = weighted_loss(totals, self._weights)
        return output._replace(metrics={**(output.metrics or {}), **metrics})
