"""Speed and memory of hubextrap beside mergekit and the raw I/O of the same bytes: `make bench`."""
