"""LoRA adapters: a run of them is a trajectory of deltas, which products of small factors are."""
