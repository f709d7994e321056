"""Making preference data: embedding, nearest neighbours, retrieved and counterfactual pairs, rejected responses.

Models that speak are handed in (`Speaker`); encoders are loaded with `transformers` alone.
"""
