#!/usr/bin/env bash
# Proves that the data set of a preset is complete and unchanged, on the host:
#
#   sentiment_analysis/verify_dataset.sh mini
#
# Prints "OK: N files", or a line for each file that is missing or differs and then what to do (exit 1).
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

# verify_reviews ARCHIVE: 12,500 reviews of each half and label.
verify_reviews() {
  local half label found names
  [[ -f $DATA_DIR/$1 ]] || return 0 # dataset_verify_files has said so
  names=$(tar --list --force-local --file="$DATA_DIR/$1" 2>/dev/null) || true
  for half in train test; do
    for label in pos neg; do
      found=$(grep --count --extended-regexp "^aclImdb/$half/$label/[0-9]+_[0-9]+\.txt\$" <<<"$names") || true
      dataset_verify_count "$1" "12500 $half/$label reviews" "$found $half/$label reviews"
    done
  done
}

# verify_snippets ARCHIVE: the lines of the table of movie snippets.
verify_snippets() {
  local member=hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt found
  [[ -f $DATA_DIR/$1 ]] || return 0
  found=$(tar --extract --to-stdout --force-local --file="$DATA_DIR/$1" "$member" 2>/dev/null | grep --count "") || true
  dataset_verify_count "$1" "10605 snippets" "$found snippets"
}

dataset_begin sentiment_analysis \
  "Proves that the data set of a preset is complete and unchanged." \
  "reference  IMDB: 25,000 and 25,000 labelled reviews
mini       movie snippets of VADER: 10,605, of which 9,173 have a clear rating
tiny       made-up data: nothing to prove" "$@"

case $PRESET in
  reference)
    dataset_verify_manifest aclImdb_v1.tar.gz
    dataset_verify_files aclImdb_v1.tar.gz
    verify_reviews aclImdb_v1.tar.gz
    ;;
  mini)
    dataset_verify_manifest vaderSentiment-2.5.tar.gz
    dataset_verify_files hutto_ICWSM_2014.tar.gz
    verify_snippets hutto_ICWSM_2014.tar.gz
    ;;
esac
dataset_verify_prepared
dataset_verdict
