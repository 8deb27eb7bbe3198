"""The fusion of a recipe trained by Transformers' own `Trainer`, for whoever has callbacks, sweeps or trackers around it:

    python scripts/train.py recipes/demo.yaml --stage video --stage audio
    python examples/trainer.py recipes/demo.yaml --output runs/trainer

It does what `scripts/train.py recipes/demo.yaml --stage fusion` does: same windows of kept features in the same order, same
optimizer and schedule (but that `Trainer` rounds the warm-up upwards), same choice of the best epoch. Without dropout and
augmentation the weights are the same too.

The loss is the model's own, 1 - CCC over the batch, and CCC is no mean over samples. Therefore

- `gradient_accumulation_steps` optimises the mean of small batches' losses, not the loss of one large batch;
- several GPUs need `accelerate launch examples/trainer.py ...`, under which the loss is that of the global batch. In one
  process `Trainer` would split each batch among them and average, which is refused here;
- `Trainer`'s own evaluation is a mean over batches, and `compute_metrics` would see the ends of clips alone, one frame in
  `hop`. What is logged here and selects the epoch is CCC over all labelled frames, on the timeline that the pipeline gives.
"""

import argparse

import torch
from torch.utils.data import default_collate
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

from jca.augmentation import make_augmentation
from jca.evaluation import evaluate
from jca.features import extract_features
from jca.recipes import build_model, build_processor, load_recipe, load_splits
from jca.training import load_encoders
from jca.windows import EpochSampler, WindowDataset


class FusionTrainer(Trainer):
    """
    `Trainer` of a model with frozen encoders on rows of [`extract_features`].

    Args:
        train, selected: rows to train on, and those whose CCC selects the epoch.
        processor, hop: with which the features were made.
        stage: the `fusion` section of a recipe, [`StageArguments`].
        folder: gets the checkpoints.

    Raises:
        ValueError: if the section asks for what `Trainer` can not do, or one process sees several GPUs.
    """

    def __init__(self, model, train, selected, processor, hop, stage, folder, seed=0):
        if stage.ema_decay is not None or stage.whole_batch_gradient:
            raise ValueError(
                f"ema_decay={stage.ema_decay}, whole_batch_gradient={stage.whole_batch_gradient}: Trainer has neither, "
                "leave them out or use scripts/train.py."
            )
        windows = WindowDataset(train, processor, hop, every_phase=True)
        epoch = stage.samples_per_epoch or max(1, windows.num_clips // processor.num_clips)  # each clip counts once
        self.sampler = EpochSampler(windows.rows, epoch, stage.balanced, seed)
        self.processor, self.hop = processor, hop
        augment = make_augmentation(
            processor.video_processor, modality_dropout=stage.modality_dropout, feature_noise=stage.feature_noise
        )
        arguments = TrainingArguments(
            str(folder),
            per_device_train_batch_size=stage.batch_size,
            gradient_accumulation_steps=stage.gradient_accumulation_steps,
            num_train_epochs=stage.num_epochs,
            lr_scheduler_type="cosine",
            warmup_steps=stage.warmup_ratio,  # below 1 it is a share of all steps
            max_grad_norm=stage.max_grad_norm,
            dataloader_drop_last=epoch > stage.batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="ccc",
            logging_strategy="epoch",
            logging_nan_inf_filter=False,  # it would log a loss that is no number as the mean of those before
            seed=seed,
        )
        if arguments.n_gpu > 1:
            raise ValueError(
                f"One process sees {arguments.n_gpu} GPUs: start it with accelerate launch, or show it one."
            )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(
            model,
            arguments,
            data_collator=lambda items: augment(default_collate(items)),
            train_dataset=windows,
            eval_dataset=selected,
            callbacks=[EarlyStoppingCallback(stage.patience)] if stage.patience is not None else None,
            # Trainer's own AdamW would not decay biases
            optimizers=(torch.optim.AdamW(trained, stage.learning_rate, weight_decay=stage.weight_decay), None),
        )

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        return self.sampler

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """The [`score`] over all labelled frames of `eval_dataset`, rows of [`extract_features`]."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        scored = evaluate(self.model, rows, self.processor, self.hop)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scored.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file, see recipes/; its stages video and audio have ended")
    parser.add_argument("--output", required=True, help="folder for the checkpoints and at last the best model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe, seed = load_recipe(arguments.recipe), arguments.seed
    processor, hop = build_processor(recipe), recipe.data.hop
    set_seed(seed)
    model = build_model(recipe)
    load_encoders(model, recipe, seed)
    train, validation = (
        extract_features(rows, model, processor, hop, f"{recipe.output_dir}/cache", recipe.data.num_workers)
        for rows in load_splits(recipe)[:2]
    )
    trainer = FusionTrainer(model, train, validation, processor, hop, recipe.fusion, arguments.output, seed)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()
    if trainer.is_world_process_zero():  # not as `processing_class`: of a processor Trainer wants the tokenizer
        processor.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
