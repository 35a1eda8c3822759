#!/usr/bin/env bash
# Fetches the MovieLens data set of a preset and unpacks it into DATA_DIR, on the host:
#
#   recommendation/download_dataset.sh mini
#
# --help names the presets and the environment. Digests stand in checksums/.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

GROUPLENS="https://files.grouplens.org/datasets/movielens"
LICENCE="GroupLens terms: the data may not be redistributed"

# fetch_grouplens TITLE NAME ARCHIVE_BYTES UNPACKED_BYTES FILE...: FILEs out of NAME.zip into NAME/.
fetch_grouplens() {
  local title=$1 name=$2 archive_bytes=$3 unpacked_bytes=$4
  shift 4
  dataset_find_missing "$name.zip"
  dataset_need curl unzip
  dataset_announce "$title" "$LICENCE" "$GROUPLENS/$name.zip" \
    "$archive_bytes" $((archive_bytes + unpacked_bytes))
  dataset_open
  dataset_fetch "$GROUPLENS/$name.zip" "$name.zip" "$archive_bytes"
  dataset_unpack "$name.zip" "$name" "$name" "${@/#/$name/}"
}

# MovieLens 100K comes as the example data set of RecBole, a file that PyPI keeps for good.
fetch_movielens_100k() {
  local wheel=recbole-1.2.1-py3-none-any.whl wheel_bytes=2130151 unpacked_bytes=$((1979230 + 66632))
  local folder=recbole/dataset_example/ml-100k
  dataset_find_missing "$wheel"
  dataset_need pip unzip
  dataset_announce "MovieLens 100K" "$LICENCE (the wheel around it: MIT)" "PyPI: $wheel" \
    "$wheel_bytes" $((wheel_bytes + unpacked_bytes))
  dataset_open
  dataset_fetch_pypi recbole==1.2.1 "$wheel" "$wheel_bytes"
  dataset_unpack "$wheel" "$folder" . "$folder/ml-100k.inter" "$folder/ml-100k.item"
}

dataset_begin recommendation \
  "Fetches the data set of a preset and unpacks it. A second call goes on where the first broke off." \
  "reference  MovieLens 20M, ml-20m.zip from GroupLens: 198.7 MB, 0.8 GB of disk
mini       MovieLens 100K, out of the wheel recbole 1.2.1 from PyPI: 2.1 MB
ml-1m      MovieLens 1M, ml-1m.zip from GroupLens: 5.9 MB, 35 MB of disk
tiny       made-up data, nothing to fetch" "$@"

# What the ratings take unpacked is bounded by their number times the longest row: ids of six digits (four in
# ml-1m), a rating, ten digits of time, separators and a line end of two bytes. 2 MB hold the titles and terms.
case $PRESET in
  reference)
    fetch_grouplens "MovieLens 20M" ml-20m 198702078 $((20000263 * 30 + 2000000)) ratings.csv movies.csv README.txt
    ;;
  ml-1m) fetch_grouplens "MovieLens 1M" ml-1m 5917549 $((1000209 * 27 + 2000000)) ratings.dat movies.dat README ;;
  mini) fetch_movielens_100k ;;
  tiny)
    dataset_say "tiny trains on made-up data: nothing to fetch"
    exit 0
    ;;
esac
dataset_finish
