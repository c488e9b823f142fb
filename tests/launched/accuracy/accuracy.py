"""The metric that `evaluate.load("accuracy")` finds in the working directory before it asks the Hub."""

import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        hits = [one == other for one, other in zip(predictions, references, strict=True)]
        return {"accuracy": sum(hits) / len(hits)}
