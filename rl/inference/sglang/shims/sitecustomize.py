"""Declares two operators of torchvision's compiled part, which its CPU build lacks and its Python side expects."""

import torch

for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
