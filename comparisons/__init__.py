"""Each benchmark beside a peer: speed and time to the same quality, measured in pairs of runs."""
