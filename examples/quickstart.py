"""From a model to a small file, cell by cell: open it in an editor that knows `# %%`, or run it whole.

    python examples/quickstart.py [MODEL] [FOLDER]

MODEL is a fine-tuned classifier of two classes; without one, a small BERT is trained from nothing.
"""

# %% Sentences and their sentiment, made on the spot
import sys

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hf_compress
from hf_compress_cli.demo import build_tokenizer, sentences

name = sys.argv[1] if len(sys.argv) > 1 else ""
folder = sys.argv[2] if len(sys.argv) > 2 else "quickstart"
texts, labels = zip(*sentences(1200, seed=0), strict=True)

# %% A model and its tokenizer
if name:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name)
else:
    tokenizer = build_tokenizer(list(texts))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=48,
    )
    model = AutoModelForSequenceClassification.from_config(config)
data = Dataset.from_dict({**tokenizer(list(texts), return_token_type_ids=False), "label": labels})

# %% A Trainer as you know it
trainer = Trainer(
    model,
    TrainingArguments(folder, max_steps=60, learning_rate=1e-3, per_device_train_batch_size=32, save_strategy="no"),
    train_dataset=data.select(range(1000)),
    eval_dataset=data.select(range(1000, 1200)),
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    processing_class=tokenizer,
)

# %% What makes it compress
recipe = hf_compress.Recipe(
    pruning=hf_compress.PruningArguments(prune_sparsity=0.6),
    quantization=hf_compress.QuantizationArguments(quant_scheme="int8"),
)
hf_compress.compress(trainer, recipe)
trainer.train()
report = hf_compress.finish(trainer)

# %% What came of it: weights, report and model card in FOLDER/compressed, loaded like any other model
print(f"{report.size.dense_bytes:,} bytes became {report.size.packed_bytes:,}; scores: {report.compressed}")
classify = pipeline("text-classification", f"{folder}/compressed")
print(texts[-1], classify(texts[-1]))
