"""Train an embedding model on pairs of sentences that people have scored for similarity (STS-B).

Nothing in this script is of hf_compress. It runs as it stands, and makes a small model with

    hf-compress run examples/train_sentence_transformer.py --output_dir out --quant_scheme int8
"""

from dataclasses import dataclass, field

from datasets import DatasetDict, load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from transformers import HfArgumentParser

# Columns of GLUE's tasks with pairs, and the label of those that mean the same.
PAIRS = {
    "qqp": ("question1", "question2", 1),
    "mrpc": ("sentence1", "sentence2", 1),
    "mnli": ("premise", "hypothesis", 0),
}


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
    pairs: list[str] = field(
        default_factory=list,
        metadata={"help": "Train on pairs that mean the same, too: of `qqp`, `mrpc` and `mnli`.", "choices": [*PAIRS]},
    )
    max_pairs: int | None = field(default=None, metadata={"help": "Pairs of each of `--pairs`. By default all."})
    max_retrieval_samples: int = field(
        default=0,
        metadata={"help": "Rows of `qnli` to evaluate search on: questions must find their sentences among all."},
    )


def part(rows, count):
    """Return the first `count` rows as two texts and a score between 0 and 1; all rows if that is None."""
    rows = rows.select(range(min(count or len(rows), len(rows))))
    rows = rows.map(lambda row: {"score": row["label"] / 5})
    return rows.select_columns(["sentence1", "sentence2", "score"])


def paired(rows, name, count):
    """Return the first `count` pairs of a task that mean the same, as two columns."""
    one, two, same = PAIRS[name]
    rows = rows.filter(lambda row: row["label"] == same)
    rows = rows.select(range(min(count or len(rows), len(rows))))
    return rows.select_columns([one, two]).rename_columns({one: "anchor", two: "positive"})


def retrieval(rows):
    """Return an evaluator: each question that a sentence answers must find it among all sentences."""
    places = {text: str(number) for number, text in enumerate(dict.fromkeys(rows["sentence"][:]))}
    answered = rows.filter(lambda row: row["label"] == 0)
    return InformationRetrievalEvaluator(
        queries={str(number): row["question"] for number, row in enumerate(answered)},
        corpus={place: text for text, place in places.items()},
        relevant_docs={str(number): {places[row["sentence"]]} for number, row in enumerate(answered)},
        name="qnli-dev",
        accuracy_at_k=[10],
        precision_recall_at_k=[10],
        map_at_k=[10],
    )


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
    loss = CoSENTLoss(model)
    if script.pairs:
        tasks = {name: load_dataset(script.dataset_name, name)["train"] for name in script.pairs}
        pairs = {name: paired(rows, name, script.max_pairs) for name, rows in tasks.items()}
        train = DatasetDict({"stsb": train, **pairs})
        loss = {"stsb": loss} | dict.fromkeys(pairs, MultipleNegativesRankingLoss(model))
    evaluators = [evaluator]
    if script.max_retrieval_samples:
        rows = load_dataset(script.dataset_name, "qnli")["validation"]
        evaluators.append(retrieval(rows.select(range(min(script.max_retrieval_samples, len(rows))))))
    trainer = SentenceTransformerTrainer(
        model=model, args=training, train_dataset=train, loss=loss, evaluator=evaluators
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if training.do_eval:
        print(trainer.evaluate())
    model.save_pretrained(f"{training.output_dir}/final")


if __name__ == "__main__":
    main()
