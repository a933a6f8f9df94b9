"""Training: configuration, data, loop, checkpoints and metrics.

Needs the extra ``train`` (``pip install "dwsep[train]"``): safetensors, pydantic, torchmetrics and pillow, each
imported where it is used.
"""
