"""Triton decides between compiler and interpreter when it is first imported: without a GPU, the latter."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
