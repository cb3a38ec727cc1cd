"""Speed and memory of hubextrap beside its peers, and against its targets: `make bench`."""
