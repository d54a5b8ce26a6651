"""The network as PyTorch has it: classifier, starting weights, views of it, what it knows."""
