"""Layers of Neural Attentive Circuits (Weiss et al. 2022, arXiv 2210.08031)."""
