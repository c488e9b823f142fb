"""A script that fine-tunes a small decoder with TRL's SFTTrainer, without anything of compression."""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

folder, output = sys.argv[1:3]
words = ["bright", "warm", "clever", "dull", "cold", "clumsy"]
texts = [f"the film was very {words[i % 6]} and the song was {words[(i + 1) % 6]} today" for i in range(32)]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder),
    args=SFTConfig(
        output,
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        eos_token="[SEP]",
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    train_dataset=Dataset.from_dict({"text": texts}),
    eval_dataset=Dataset.from_dict({"text": texts[:8]}),
    processing_class=AutoTokenizer.from_pretrained(folder),
)
trainer.train()
trainer.evaluate()
