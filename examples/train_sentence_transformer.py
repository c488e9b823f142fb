"""Train an embedding model on pairs of sentences that people have scored for similarity (STS-B).

Nothing in this script is of hf_compress. It runs as it stands, and makes a small model with

    hf-compress run examples/train_sentence_transformer.py --output_dir out --quant_scheme int8
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import HfArgumentParser


@dataclass
class ScriptArguments:
    """What to train, and on what."""

    model_name_or_path: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2", metadata={"help": "A model of sentence-transformers."}
    )
    dataset_name: str = field(
        default="nyu-mll/glue", metadata={"help": "A dataset with `stsb`: a Hub id or a folder."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Rows to train on. By default all."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Rows to evaluate on. By default all."})


def part(rows, count):
    """Return the first `count` rows as two texts and a score between 0 and 1; all rows if that is None."""
    rows = rows.select(range(min(count or len(rows), len(rows))))
    rows = rows.map(lambda row: {"score": row["label"] / 5})
    return rows.select_columns(["sentence1", "sentence2", "score"])


def main():
    parser = HfArgumentParser((ScriptArguments, SentenceTransformerTrainingArguments))
    script, training = parser.parse_args_into_dataclasses()
    model = SentenceTransformer(script.model_name_or_path, device="cpu" if training.use_cpu else None)
    data = load_dataset(script.dataset_name, "stsb")
    train = part(data["train"], script.max_train_samples)
    dev = part(data["validation"], script.max_eval_samples)
    evaluator = EmbeddingSimilarityEvaluator(
        sentences1=dev["sentence1"][:], sentences2=dev["sentence2"][:], scores=dev["score"][:], name="sts-dev"
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=training, train_dataset=train, loss=CoSENTLoss(model), evaluator=evaluator
    )
    trainer.train()
    trainer.evaluate()
    model.save_pretrained(f"{training.output_dir}/final")


if __name__ == "__main__":
    main()
