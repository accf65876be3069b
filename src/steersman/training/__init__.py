"""One supervised loop for every objective that reads hidden states at chosen positions."""
