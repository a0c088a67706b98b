"""Fused U-Net and BERT models: convolution rows beside BertLayers, which read each other."""
