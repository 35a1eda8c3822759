#!/usr/bin/env bash
# Proves that the data set of a preset is complete and unchanged, on the host:
#
#   object_detection/verify_dataset.sh mini
#
# Prints "OK: N files", or a line for each file that is missing or differs and then what to do (exit 1).
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

# verify_split SPLIT IMAGES IMAGES_WITH_AN_ANNOTATION: photos on the disk, and images of the annotations.
verify_split() {
  local annotations=annotations/instances_$1.json found
  if [[ -d $DATA_DIR/$1 ]]; then
    found=$(find -L "$DATA_DIR/$1" -type f -name '*.jpg' | wc -l)
    dataset_verify_count "$1" "$2 images" "$found images"
  else
    # shellcheck disable=SC2154  # the library sets it
    dataset_problem "$1" "missing, expected $2 images" "run $dataset_again"
  fi
  [[ -f $DATA_DIR/$annotations ]] || return 0 # dataset_verify_files has said so
  # shellcheck disable=SC2154  # the library sets it
  found=$("$PYTHON" "$dataset_folder/count_images.py" "$DATA_DIR/$annotations") || found="no annotations"
  dataset_verify_count "$annotations" "$2 images, $3 of them with an annotation" "$found"
}

dataset_begin coco \
  "Proves that the data set of a preset is complete and unchanged." \
  "reference  COCO 2017: 118,287 and 5,000 images, and ResNet-50's weights
mini       generated shapes: what prepare.py made, where it has
tiny       made-up data: nothing to prove" "$@"

case $PRESET in
  reference)
    dataset_verify_manifest annotations_trainval2017.zip val2017.zip R-50.pkl train2017.zip
    dataset_verify_files annotations/instances_train2017.json annotations/instances_val2017.json \
      R-50.pkl
    verify_split train2017 118287 117266
    verify_split val2017 5000 4952
    ;;
  mini)
    [[ -e $DATA_DIR/prepared ]] ||
      dataset_say "note: the shapes are not made yet; run_and_time.sh makes them before it trains"
    ;;
esac
dataset_verify_prepared
dataset_verdict
