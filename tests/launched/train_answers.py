"""A script like run_qa.py: its Trainer is in a module beside it, and its `evaluate` takes examples to score."""

import sys

from datasets import Dataset
from neighbour import QuestionAnsweringTrainer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, HfArgumentParser, TrainingArguments


def main():
    (training_args, rest) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        return_remaining_strings=True
    )
    model = AutoModelForQuestionAnswering.from_pretrained(rest[0])
    tokenizer = AutoTokenizer.from_pretrained(rest[0])
    words = ["bright", "warm", "clever", "dull", "cold", "clumsy"]
    texts = [f"the film was {words[i % 6]} and the song is {words[(i + 1) % 6]}" for i in range(48)]
    encoded = dict(tokenizer(texts, padding="max_length", max_length=14, truncation=True))
    encoded["start_positions"] = [4 if i % 2 else 9 for i in range(48)]
    encoded["end_positions"] = encoded["start_positions"]
    dataset = Dataset.from_dict(encoded)
    examples = Dataset.from_dict({"answer": encoded["start_positions"]})

    def post_processing_function(examples, features, predictions, stage="eval"):
        starts = predictions[0].argmax(-1)
        return {"found": float((starts == examples["answer"][:]).mean()) * 100, "rows": len(features), "stage": stage}

    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(16)),
        eval_examples=examples.select(range(16)),
        processing_class=tokenizer,
        post_process_function=post_processing_function,
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", {name: value for name, value in metrics.items() if not isinstance(value, str)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
