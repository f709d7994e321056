"""From dataset rows to batches: the row schema, images, completion masks, the collator, loading and checking.

What the collator must know of a model (which processor tensors belong to an image, what the objective needs of a
row) is handed to it; nothing here imports a family or an objective.
"""
