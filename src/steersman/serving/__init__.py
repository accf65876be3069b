"""Models behind HTTP: NeMo's `PUT /generate`, OpenAI's completions and chat, attributes, and a page with dials."""
