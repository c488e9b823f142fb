import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)
from transformers.modeling_outputs import (
    CausalLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from hf_compress.models.classes import class_order, has_default_labels
from hf_compress.models.heads import bare, find_head

BERT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DISTILBERT = {"vocab_size": 100, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 1, "n_head": 2}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


@pytest.mark.parametrize(
    ("auto_class", "config", "kind", "pipeline_tag"),
    [
        (AutoModelForSequenceClassification, BertConfig(**BERT), "sequence", "text-classification"),
        (AutoModelForSequenceClassification, DistilBertConfig(**DISTILBERT), "sequence", "text-classification"),
        (AutoModelForTokenClassification, RobertaConfig(**BERT), "token", "token-classification"),
        (AutoModelForQuestionAnswering, BertConfig(**BERT), "question", "question-answering"),
        (AutoModelForMultipleChoice, BertConfig(**BERT), "choice", "multiple-choice"),
        (AutoModelForMaskedLM, DistilBertConfig(**DISTILBERT), "masked", "fill-mask"),
        (AutoModelForCausalLM, GPT2Config(**GPT2), "causal", "text-generation"),
        (AutoModelForCausalLM, LlamaConfig(**BERT), "causal", "text-generation"),
        (AutoModelForSeq2SeqLM, T5Config(**T5), "seq2seq", "text2text-generation"),
        (AutoModelForSeq2SeqLM, BartConfig(**BART), "seq2seq", "text2text-generation"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, (BertConfig, GPT2Config)) else None,
)
def test_the_head_is_found_from_the_class(auto_class, config, kind, pipeline_tag):
    head = find_head(auto_class.from_config(config))
    assert (head.kind, head.pipeline_tag, head.auto_class) == (kind, pipeline_tag, auto_class)


@pytest.mark.parametrize(
    ("settings", "problem", "name"),
    [
        ({"num_labels": 1}, "regression", "regression"),
        ({"num_labels": 3, "problem_type": "regression"}, "regression", "regression"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification", None),
        ({"num_labels": 3}, None, "sequence classification"),
    ],
)
def test_the_configuration_tells_regression_from_classification(settings, problem, name):
    head = find_head(BertForSequenceClassification(BertConfig(**BERT, **settings)))
    assert head.problem_type == problem
    assert head.name == (name or "multi-label classification")
    assert head.regression == (problem == "regression")
    assert head.classifies == (problem != "regression")


def test_labels_decide_what_the_configuration_leaves_open():
    head = find_head(BertForSequenceClassification(BertConfig(**BERT, num_labels=3)))
    assert head.problem({"labels": torch.tensor([0, 2])}) == "single_label_classification"
    assert head.problem({"labels": torch.zeros(2, 3)}) == "multi_label_classification"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_subclasses_and_wrappers_have_the_head_of_their_model(tiny_bert):
    from peft import LoraConfig, get_peft_model

    class Ours(BertForSequenceClassification):
        pass

    assert find_head(Ours(BertConfig(**BERT))) == find_head(tiny_bert)
    assert find_head(torch.nn.DataParallel(tiny_bert)) == find_head(tiny_bert)
    compiled = torch.compile(tiny_bert, backend="eager")
    assert find_head(compiled) == find_head(tiny_bert)
    assert bare(compiled) is tiny_bert
    adapted = get_peft_model(tiny_bert, LoraConfig(target_modules=["query"], r=2))
    assert find_head(adapted).kind == "sequence"


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (lambda: BertModel(BertConfig(**BERT)), "BertModel"),
        (lambda: BertForNextSentencePrediction(BertConfig(**BERT)), "sequence classification"),
        (lambda: BartForCausalLM(BartConfig(**BART)), "following token"),
    ],
)
def test_an_unknown_head_is_refused(model, word):
    with pytest.raises(ValueError, match=word):
        find_head(model())


def head_of(auto_class, config=None):
    return find_head(auto_class.from_config(config or BertConfig(**BERT)))


def test_token_positions_leave_out_ignored_labels_and_padding():
    head = head_of(AutoModelForTokenClassification)
    logits = torch.arange(24.0).reshape(2, 4, 3)
    inputs = {
        "labels": torch.tensor([[-100, 1, 2, -100], [0, 1, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    (selected,) = head.positions(TokenClassifierOutput(logits=logits), inputs)
    assert torch.equal(selected, torch.stack([logits[0, 1], logits[0, 2], logits[1, 0], logits[1, 1]]))
    assert head.count(inputs) == 4
    relabelled = head.relabelled(inputs, fill_empty=False)["labels"]
    assert torch.equal(relabelled, torch.tensor([[-100, 1, 2, -100], [0, 1, -100, -100]]))
    assert inputs["labels"][1, 3] == 0, "the caller's batch is left as it was"


def test_causal_positions_predict_the_following_token():
    head = head_of(AutoModelForCausalLM, GPT2Config(**GPT2))
    logits = torch.arange(16.0).reshape(1, 4, 4)
    inputs = {"labels": torch.tensor([[5, -100, 7, 8]])}
    (selected,) = head.positions(CausalLMOutput(logits=logits), inputs)
    assert torch.equal(selected, logits[0, [1, 2]])
    assert head.count(inputs) == 2
    packed = {"labels": inputs["labels"], "shift_labels": torch.tensor([[-100, 7, -100, 9]])}
    (selected,) = head.positions(CausalLMOutput(logits=logits), packed)
    assert torch.equal(selected, logits[0, [1, 3]])


def test_padding_takes_no_part_in_where_an_answer_starts_or_ends():
    head = head_of(AutoModelForQuestionAnswering)
    start, end = torch.randn(2, 5), torch.randn(2, 5)
    inputs = {
        "start_positions": torch.tensor([0, 1]),
        "end_positions": torch.tensor([1, 2]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    selected = head.positions(QuestionAnsweringModelOutput(start_logits=start, end_logits=end), inputs)
    for ours, logits in zip(selected, (start, end), strict=True):
        torch.testing.assert_close(ours.softmax(-1)[0, :3], logits[0, :3].softmax(-1))
        assert (ours.softmax(-1)[0, 3:] == 0).all()
        assert torch.equal(ours[1], logits[1])
    assert head.count(inputs) == 2


def test_rows_without_a_label_do_not_count():
    head = head_of(AutoModelForSequenceClassification)
    logits = torch.randn(3, 2)
    (selected,) = head.positions(SequenceClassifierOutput(logits=logits), {"labels": torch.tensor([1, -100, 0])})
    assert torch.equal(selected, logits[[0, 2]])


def test_every_row_of_a_regression_counts():
    head = head_of(AutoModelForSequenceClassification, BertConfig(**BERT, num_labels=1))
    assert head.count({"labels": torch.tensor([0.5, -100.0, 3.0])}) == 3


def test_half_precision_logits_are_compared_in_float32():
    head = head_of(AutoModelForSequenceClassification)
    inputs = {"labels": torch.tensor([1])}
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        (selected,) = head.positions(SequenceClassifierOutput(logits=torch.zeros(1, 2, dtype=dtype)), inputs)
        assert selected.dtype == expected


def test_a_batch_without_counted_labels_gets_fillers():
    head = head_of(AutoModelForMaskedLM)
    empty, full = torch.full((2, 3), -100), torch.tensor([[-100, 5, -100]])
    assert torch.equal(head.relabelled({"labels": empty}, fill_empty=True)["labels"], torch.zeros(2, 3).long())
    assert torch.equal(head.relabelled({"labels": empty}, fill_empty=False)["labels"], empty)
    assert torch.equal(head.relabelled({"labels": full}, fill_empty=True)["labels"], full)


def test_missing_labels_and_nameless_outputs_are_explained(tiny_bert):
    head = find_head(tiny_bert)
    with pytest.raises(ValueError, match="no labels"):
        head.positions(SequenceClassifierOutput(logits=torch.zeros(1, 2)), {"input_ids": torch.zeros(1, 1)})
    tiny_bert.config.return_dict = False
    with pytest.raises(ValueError, match="return_dict"):
        head.logits(tiny_bert(input_ids=torch.zeros(1, 3, dtype=torch.long)))


@pytest.mark.parametrize(
    ("student", "teacher", "order"),
    [
        (["no", "yes"], ["no", "yes"], [0, 1]),
        (["No", "Yes"], ["yes", "NO"], [1, 0]),
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["no", "yes"], ["no", "perhaps"], None),
        (["a", "A"], ["A", "b"], None),
    ],
)
def test_classes_are_put_in_order_by_name(student, teacher, order):
    configs = [BertConfig(**BERT, id2label=dict(enumerate(names))) for names in (student, teacher)]
    assert class_order(*configs) == order


def test_only_labels_that_nobody_named_are_default():
    assert has_default_labels(BertConfig(**BERT, num_labels=3))
    assert not has_default_labels(BertConfig(**BERT, id2label={0: "LABEL_0", 1: "spam"}))
