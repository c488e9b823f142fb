"""A script that makes a reranker of a plain encoder, and evaluates it by itself."""

import sys

from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderCorrelationEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

model = CrossEncoder(sys.argv[1], num_labels=1, device="cpu")
words = ["bright", "warm", "clever", "dull", "cold", "clumsy"]
texts = [f"the film was {words[i % 6]} today" for i in range(24)]
others = [f"a song is {words[(i + i // 6) % 6]}" for i in range(24)]
scores = [float(texts[i].split()[3] == others[i].split()[3]) for i in range(24)]
rows = Dataset.from_dict({"one": texts, "two": others, "score": scores})
args = CrossEncoderTrainingArguments(
    sys.argv[2],
    max_steps=8,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    save_strategy="no",
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
evaluator = CrossEncoderCorrelationEvaluator([*zip(texts, others, strict=True)], scores, name="words")
loss = BinaryCrossEntropyLoss(model)
trainer = CrossEncoderTrainer(
    model=model, args=args, train_dataset=rows, eval_dataset=rows, loss=loss, evaluator=evaluator
)
trainer.train()
evaluator(model)
model.save_pretrained(f"{sys.argv[2]}/final")
