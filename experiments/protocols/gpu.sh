#!/usr/bin/env bash
# Everything worth measuring on one H200-class card in ten minutes, most valuable first:
#   DEEPENS_DATA=FOLDER OUT=results bash experiments/protocols/gpu.sh
# FOLDER holds cifar10/{train,test}, tiny-imagenet/val and mnist/test, one folder a class in each. Runs are in RUNS (runs/gpu);
# after each step its log, its times and all results but weights and logits are in OUT. A step that is finished is not
# repeated, and one that was stopped by its time goes on where it was, so that the same command again makes what is missing.
# SECONDS_IN_ALL (600) bounds all steps together. `--limit tiny` does the same on the digits and the CPU in a minute.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit

RUNS=${RUNS:-runs/gpu} OUT=${OUT:-runs/gpu-results} SECONDS_IN_ALL=${SECONDS_IN_ALL:-600}
protocols=experiments/protocols device=cuda seeds=(0 1 2 3 4)
data=(--data "folder:${DEEPENS_DATA:-}/cifar10")
deep=(--backbone airbench96 --members 4 --epochs 12 --label-smoothing 0.2)
table=(--width 1 --replicates 5)
tables=(cost-half objectives) benchmarks=()
limit=
if [[ ${1:-} == --limit && ${2:-} == tiny && $# == 2 ]]; then
  limit=tiny device=cpu seeds=(0)
  data=(--data digits)
  small=(--members 2 --width 0.05 --epochs 1 --batch-size 64 --precision 32)
  deep=(--backbone airbench96 "${small[@]}")
  table=("${small[@]}" --corruptions none --methods "single,deep-2" --replicates 1 --draws 100)
  tables=(cost-half) benchmarks=(training_step packed)
elif (($#)); then
  echo "gpu.sh takes no option but --limit tiny, got $*" >&2
  exit 2
elif [[ -z ${DEEPENS_DATA:-} ]]; then
  echo "DEEPENS_DATA must name the folder of cifar10, tiny-imagenet and mnist" >&2
  exit 2
fi
mkdir -p "$RUNS" "$OUT"
failed=0

# step NAME SECONDS COMMAND...: at most so long, once, with a log; results are copied whatever happens
step() {
  local name=$1 box=$2 left=$((SECONDS_IN_ALL - SECONDS)) began=$SECONDS status
  shift 2
  [[ -e $OUT/$name.done ]] && return
  ((box > left)) && box=$left
  if ((box < 5)); then
    echo "$name: no time left" | tee -a "$OUT/steps.txt"
    return
  fi
  timeout --signal=TERM --kill-after=15 "$box" "$@" > "$OUT/$name.log" 2>&1
  status=$?
  case $status in
    0) touch "$OUT/$name.done" ;;
    124 | 137 | 143) ;; # the time was over
    *) failed=$((failed + 1)) ;;
  esac
  echo "$name: status $status after $((SECONDS - began)) of $box s" | tee -a "$OUT/steps.txt"
  copy_results
}

copy_results() {
  (
    cd "$RUNS" || exit
    find . -type f -size -20M \( -name '*.csv' -o -name '*.json' -o -name '*.yaml' -o -name 'report.*' \) -print0
  ) | tar -C "$RUNS" --null -T - -cf - | tar -C "$OUT" -xf -
}

# (1) does every family work on the card?
step smoke 90 python -m deepens.experiments.protocols.smoke "$RUNS/smoke" "$device"

# (2) a deep ensemble of four airbench96 at 96 % within 60 s of training, on one view of each image
for seed in "${seeds[@]}"; do
  step "airbench96-$seed" 90 python -m deepens train --recipe fast "${data[@]}" "${deep[@]}" --seed "$seed" \
    --near-ood none --far-ood none --corruptions none --device "$device" --quiet --out "$RUNS/airbench96-$seed"
done
python -m deepens.experiments.protocols.accuracy_in_time "$RUNS"/airbench96-* | tee "$OUT/airbench96.csv"

# (3) the method tables at the full network
for name in "${tables[@]}"; do
  config=$protocols/evidence/$name.yaml
  if [[ $limit == tiny ]]; then # the digits have sets of their own
    grep -Ev '^(data|near_ood|far_ood|ood_exclude|encode_ood|severities):' "$config" > "$RUNS/$name.yaml"
    config=$RUNS/$name.yaml
  fi
  step "$name" 150 python -m deepens compare --recipe fast --config "$config" "${table[@]}" \
    --device "$device" --quiet --out "$RUNS/$name"
done

# (4) the benchmarks, as ratios
step bench 90 python -m deepens bench "${benchmarks[@]}" --device "$device" --limit "${limit:-small}" \
  --json "$OUT/bench.json"
exit "$((failed > 0))"
