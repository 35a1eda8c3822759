#!/usr/bin/env bash
# Fetches COCO 2017 and the backbone's weights into DATA_DIR, on the host:
#
#   object_detection/download_dataset.sh
#
# --help names the presets and the environment. Digests stand in checksums/; sizes are the published
# rounded ones.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

# images.cocodataset.org itself has no certificate of its own name.
COCO="https://s3.amazonaws.com/images.cocodataset.org"
WEIGHTS="https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA"

fetch_coco() {
  local archive bytes fetch_bytes=0 disk_bytes=0
  local -A sizes=(
    [train2017.zip]=19300000000
    [val2017.zip]=816000000
    [annotations_trainval2017.zip]=253000000
    [R-50.pkl]=102000000
  )
  dataset_find_missing annotations_trainval2017.zip val2017.zip R-50.pkl train2017.zip
  dataset_need curl unzip
  # shellcheck disable=SC2154  # the library sets it
  for archive in "${dataset_missing[@]}"; do
    bytes=${sizes[$archive]}
    ((fetch_bytes += bytes))
    # Photos hardly shrink, annotations by two thirds; of those only two files are kept.
    case $archive in
      *.pkl) ((disk_bytes += bytes)) ;;
      annotations*) ((disk_bytes += bytes + 500000000)) ;;
      *) ((disk_bytes += 2 * bytes)) ;;
    esac
  done
  dataset_announce "COCO 2017, and ResNet-50's weights of ImageNet" \
    "annotations CC BY 4.0; photos: Flickr's terms of each; weights: published with Detectron (Apache-2.0)" \
    "$COCO and $WEIGHTS" "$fetch_bytes" "$disk_bytes"
  dataset_open
  for archive in "${dataset_missing[@]}"; do
    bytes=\~${sizes[$archive]}
    case $archive in
      *.pkl)
        dataset_fetch "$WEIGHTS/$archive" "$archive" "$bytes"
        dataset_keep "$archive"
        ;;
      annotations*)
        dataset_fetch "$COCO/annotations/$archive" "$archive" "$bytes"
        dataset_unpack "$archive" annotations annotations \
          annotations/instances_train2017.json annotations/instances_val2017.json
        ;;
      *)
        dataset_fetch "$COCO/zips/$archive" "$archive" "$bytes"
        dataset_unpack "$archive" "${archive%.zip}" "${archive%.zip}"
        ;;
    esac
  done
}

dataset_begin coco \
  "Fetches the data set of a preset and unpacks it. A second call goes on where the first broke off." \
  "reference  COCO 2017 and ResNet-50's weights: about 20.5 GB, 41 GB of disk while it is unpacked
mini       generated shapes, made here before the first training: 103 MB of disk, nothing to fetch
tiny       made-up data, nothing to fetch" "$@"

case $PRESET in
  reference) fetch_coco ;;
  mini | tiny)
    dataset_say "$PRESET trains on data that is made here: nothing to fetch"
    exit 0
    ;;
esac
dataset_finish
