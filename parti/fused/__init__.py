"""Fused U-Net and BERT models: convolution rows beside BertLayers, with cross-attention between the two."""
