"""The scores in the form that the Hub shows beside a dataset: `.eval_results/*.yaml`."""

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hf_compress.report.markdown import one_line
from hf_compress.report.phrases import split_words
from hf_compress.report.report import Report
from hf_compress.report.scores import AGAINST_DENSE, is_share

RESULTS_NAME = ".eval_results/hf_compress.yaml"


def render_results(report: Report) -> str | None:
    r"""The text of `.eval_results/hf_compress.yaml`, from the report alone; None without a dataset of the Hub.

    It has one entry: the main score on the dataset, with the split, the metric and the rows as a note.

    Example:
        >>> from hf_compress import Report
        >>> from hf_compress.report.eval_results import render_results
        >>> render_results(Report.load("run/compressed"))  # doctest: +SKIP
        '- dataset:\n    id: nyu-mll/glue\n    task_id: sst2\n  value: 0.856\n...'
    """
    dataset, metric = report.dataset, report.main_metric
    if dataset.hub_id is None or not is_share(metric) or metric in AGAINST_DENSE:
        return None
    entry = EvalResultEntry(
        dataset_id=one_line(dataset.hub_id),
        task_id=one_line(dataset.config or "default"),
        value=report.compressed[metric],
        dataset_revision=dataset.revision,
        date=report.created,
        notes=one_line(f"{metric} on {split_words(dataset)}, {dataset.eval_rows:,} rows, measured by hf_compress"),
    )
    text: str = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
    return text
