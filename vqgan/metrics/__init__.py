"""What is measured; imports no model. `psnr`, `ssim`, `fid`, `inception_score`: images of any kind, or folders."""

from vqgan.metrics.functional import fid, inception_score, psnr, ssim

__all__ = ["fid", "inception_score", "psnr", "ssim"]
