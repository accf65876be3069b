"""Models: folder, hub id or GGUF -> a `LoadedModel`; attention over packed rows; adapters; saving."""
