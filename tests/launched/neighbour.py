"""A module beside a script, like Transformers' trainer_qa.py: a Trainer with its own `evaluate`."""

from transformers.trainer import Trainer


class QuestionAnsweringTrainer(Trainer):
    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix="eval"):
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        eval_examples = self.eval_examples if eval_examples is None else eval_examples
        output = self.evaluation_loop(
            self.get_eval_dataloader(eval_dataset), description="Evaluation", metric_key_prefix=metric_key_prefix
        )
        scores = self.post_process_function(eval_examples, eval_dataset, output.predictions)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in scores.items()}
        metrics.update(output.metrics)
        self.log({name: value for name, value in metrics.items() if not isinstance(value, str)})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
