"""Families of pretrained networks that come with a package of their own: CLIP, EfficientNet-Lite, timm."""
