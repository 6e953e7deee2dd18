# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune an exported encoder on labeled images with transformers' Trainer. Needs no hf_ssl.

    python examples/finetune.py runs/quickstart/model --data recipes/quickstart --output finetuned
    python examples/finetune.py user/name --data user/labeled --epochs 50 --learning-rate 5e-4 --bf16

MODEL is a run's model/ folder or a Hub id, also of any other encoder that AutoModelForImageClassification loads.
--data is a Hub dataset, a folder with train/ and test/ and a folder for each class in them, or one of Parquet files.
The result is a model for AutoModelForImageClassification and pipeline("image-classification").
"""

import argparse

import torch
from datasets import ClassLabel, load_dataset
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments


def transforms_of(processor, train: bool) -> v2.Compose:
    """What the encoder expects: its own size and normalization; in training with crops and flips."""
    if hasattr(processor, "data_config"):  # a processor of timm
        config = processor.data_config
        side, mean, std = config["input_size"][-1], config["mean"], config["std"]
    else:
        size = processor.size
        side = size.get("height", size.get("shortest_edge"))
        mean, std = processor.image_mean, processor.image_std
    crop = [v2.RandomResizedCrop(side, scale=(0.3, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    whole = [v2.Resize(side, antialias=True), v2.CenterCrop(side)]
    pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([v2.RGB(), *(crop if train else whole), *pixels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", default="finetuned")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the encoder and the classifier")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code, where it has some")
    args = parser.parse_args()

    data = load_dataset(args.data)
    labels = data["train"].features[args.label_column]
    names = labels.names if isinstance(labels, ClassLabel) else sorted(set(map(str, data["train"][args.label_column])))
    numbers = {name: number for number, name in enumerate(names)}

    def number_of(label) -> int:
        return label if isinstance(labels, ClassLabel) else numbers[str(label)]

    def prepared(split: str):
        transform = transforms_of(processor, train=split == "train")

        def prepare(batch):
            pixels = [transform(image) for image in batch[args.image_column]]
            return {"pixel_values": pixels, "labels": list(map(number_of, batch[args.label_column]))}

        return data[split].with_transform(prepare)

    code = {"trust_remote_code": args.trust_remote_code}
    processor = AutoImageProcessor.from_pretrained(args.model, **code)
    model = AutoModelForImageClassification.from_pretrained(
        args.model, num_labels=len(names), id2label=dict(enumerate(names)), label2id=numbers, **code
    )
    arguments = TrainingArguments(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=10,
        dataloader_num_workers=args.num_workers,
        remove_unused_columns=False,
        bf16=args.bf16,
        seed=args.seed,
        report_to="none",
    )
    split = next(name for name in ("test", "validation", "val") if name in data)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=prepared("train"),
        eval_dataset=prepared(split),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    trainer.save_model(args.output)
    processor.save_pretrained(args.output)
    print(f"accuracy on {split}: {trainer.evaluate()['eval_accuracy']:.1%}; the model is in {args.output}")


if __name__ == "__main__":
    main()
