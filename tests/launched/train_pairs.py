"""A script with two datasets and a loss for each, prompts, several evaluators, and an evaluation before and after."""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, TripletEvaluator
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MatryoshkaLoss, MultipleNegativesRankingLoss

model = SentenceTransformer(sys.argv[1], device="cpu")
words = ["bright", "warm", "clever", "dull", "cold", "clumsy"]
texts = [f"the film was {words[i % 6]} today" for i in range(24)]
others = [f"a song is {words[(i + i // 6) % 6]}" for i in range(24)]
scores = [float(texts[i].split()[3] == others[i].split()[3]) for i in range(24)]
train = {
    "pairs": Dataset.from_dict({"anchor": texts, "positive": others}),
    "scored": Dataset.from_dict({"one": texts, "two": others, "score": scores}),
}
ranking = MultipleNegativesRankingLoss(model)
losses = {"pairs": MatryoshkaLoss(model, ranking, [32, 16]), "scored": CoSENTLoss(model)}
evaluators = [
    EmbeddingSimilarityEvaluator(texts, others, scores, name="words"),
    TripletEvaluator(texts, others, others[::-1], name="triplets"),
]
before = evaluators[0](model)
args = SentenceTransformerTrainingArguments(
    sys.argv[2],
    max_steps=8,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    prompts={"pairs": {"anchor": "film "}},
    eval_strategy="steps",
    eval_steps=4,
    save_steps=4,
    load_best_model_at_end=True,
    metric_for_best_model="words_spearman_cosine",
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=train, loss=losses, evaluator=evaluators)
trainer.train()
after = evaluators[0](model)
model.save_pretrained(f"{sys.argv[2]}/final")
