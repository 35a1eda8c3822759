#!/usr/bin/env bash
# Fetches the reviews of a preset into DATA_DIR, on the host:
#
#   sentiment_analysis/download_dataset.sh mini
#
# --help names the presets and the environment. Digests stand in checksums/.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../harness/dataset.sh"

# The archive is read as it is: its 100,000 small files are never unpacked.
fetch_imdb() {
  local archive=aclImdb_v1.tar.gz archive_bytes=84125825 prepared_bytes=25000000
  local folder=https://ai.stanford.edu/~amaas/data/sentiment
  dataset_find_missing "$archive"
  dataset_need curl
  dataset_announce "Large Movie Review Dataset (IMDB)" \
    "none stated; research data, to be cited as Maas et al. 2011" "$folder/$archive" \
    "$archive_bytes" $((archive_bytes + prepared_bytes))
  dataset_open
  dataset_fetch "$folder/$archive" "$archive" "$archive_bytes"
  dataset_keep "$archive"
}

# The snippets lie in an archive within VADER's source archive, a file that PyPI keeps for good.
fetch_snippets() {
  local archive=vaderSentiment-2.5.tar.gz archive_bytes=2451781 unpacked_bytes=2338514
  local inner=hutto_ICWSM_2014.tar.gz folder=vaderSentiment-2.5/additional_resources
  dataset_find_missing "$archive"
  dataset_need pip tar
  dataset_announce "rated movie review snippets (VADER, Hutto and Gilbert 2014)" \
    "MIT (the package); the snippets are third parties' reviews" "PyPI: $archive" \
    "$archive_bytes" $((archive_bytes + unpacked_bytes))
  dataset_open
  dataset_fetch_pypi vaderSentiment==2.5 "$archive" "$archive_bytes"
  dataset_unpack "$archive" "$folder" . "$folder/$inner"
}

dataset_begin sentiment_analysis \
  "Fetches the reviews of a preset. A second call goes on where the first broke off." \
  "reference  IMDB, aclImdb_v1.tar.gz from Stanford: 84.1 MB, 110 MB of disk
mini       rated movie snippets, out of the source archive vaderSentiment 2.5 from PyPI: 2.5 MB
tiny       made-up data, nothing to fetch" "$@"

case $PRESET in
  reference) fetch_imdb ;;
  mini) fetch_snippets ;;
  tiny)
    dataset_say "tiny trains on made-up data: nothing to fetch"
    exit 0
    ;;
esac
dataset_finish
