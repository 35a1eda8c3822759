#!/usr/bin/env bash
# Proves that the data set of a preset is complete and unchanged, on the host:
#
#   recommendation/verify_dataset.sh mini
#
# Prints "OK: N files", or a line for each file that is missing or differs and then what to do (exit 1).
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

dataset_begin recommendation \
  "Proves that the data set of a preset is complete and unchanged." \
  "reference  MovieLens 20M: 20,000,263 ratings
mini       MovieLens 100K: 100,000 ratings
ml-1m      MovieLens 1M: 1,000,209 ratings
tiny       made-up data: only what prepare.py made of it" "$@"

case $PRESET in
  reference)
    dataset_verify_manifest ml-20m.zip
    dataset_verify_files ml-20m/ratings.csv ml-20m/movies.csv
    dataset_verify_lines ml-20m/ratings.csv 20000263 ratings 1
    ;;
  mini)
    dataset_verify_manifest recbole-1.2.1-py3-none-any.whl
    dataset_verify_files ml-100k.inter ml-100k.item
    dataset_verify_lines ml-100k.inter 100000 ratings 1
    ;;
  ml-1m)
    dataset_verify_manifest ml-1m.zip
    dataset_verify_files ml-1m/ratings.dat ml-1m/movies.dat
    dataset_verify_lines ml-1m/ratings.dat 1000209 ratings
    ;;
esac
dataset_verify_prepared
dataset_verdict
