"""From a model to a small file, in cells: open it in an editor that knows `# %%`, or run it whole.

    python examples/quickstart.py [MODEL] [FOLDER]

MODEL is a classifier fine-tuned for two classes. Without it, a small BERT is trained from scratch.
"""

# %% Sentences and their sentiment, made up on the spot
import random
import sys

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hf_compress

name = sys.argv[1] if len(sys.argv) > 1 else ""
folder = sys.argv[2] if len(sys.argv) > 2 else "quickstart"
words = {
    "film": None,
    "song": None,
    "story": None,
    "warm": 1,
    "clever": 1,
    "bright": 1,
    "dull": 0,
    "cold": 0,
    "flat": 0,
}
things, qualities = ([word for word, label in words.items() if (label is None) == named] for named in (True, False))
draw = random.Random(0)
pairs = [(draw.choice(things), draw.choice(qualities)) for _ in range(1200)]
texts = [f"the {thing} was {quality}" for thing, quality in pairs]
labels = [words[quality] for _, quality in pairs]

# %% A model and its tokenizer
if name:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name)
else:
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "the", "was", *words])}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=48,
    )
    model = AutoModelForSequenceClassification.from_config(config)
data = Dataset.from_dict({**tokenizer(texts, return_token_type_ids=False), "label": labels})

# %% An ordinary Trainer
trainer = Trainer(
    model,
    TrainingArguments(folder, max_steps=60, learning_rate=1e-3, per_device_train_batch_size=32, save_strategy="no"),
    train_dataset=data.select(range(1000)),
    eval_dataset=data.select(range(1000, 1200)),
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    processing_class=tokenizer,
)

# %% Three lines compress what it trains
recipe = hf_compress.Recipe(
    pruning=hf_compress.PruningArguments(prune_sparsity=0.6),
    quantization=hf_compress.QuantizationArguments(quant_scheme="int8"),
)
hf_compress.compress(trainer, recipe)
trainer.train()
report = hf_compress.finish(trainer)

# %% The result in FOLDER/compressed: weights, report and card, loaded like any other model
print(f"{report.size.dense_bytes:,} bytes became {report.size.packed_bytes:,}; scores: {report.compressed}")
classify = pipeline("text-classification", f"{folder}/compressed")
print(texts[-1], classify(texts[-1]))
