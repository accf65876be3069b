"""Conversations as text, and text as tokens: template, tokenizer, loss mask, cleaning, showing."""
