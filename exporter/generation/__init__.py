"""The recipe ``text-generation``: from texts, or a model of Hugging Face's kind, to a published model that writes text.

It has a way of its own beside `exporter.steps`: what it makes is a folder of several files that a program of
onnxruntime-genai writes, its golden inputs are prompts, and its figure is a perplexity.
"""
