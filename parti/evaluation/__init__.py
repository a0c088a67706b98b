"""Evaluation of text-to-image models: tools/evaluate.py generator, and the verdicts that the demo shows."""

from parti.evaluation.prompt_accuracy import (
    CheckedImage,
    PromptEvaluation,
    check_images,
    evaluate_prompts,
    other_captions,
)

__all__ = ["CheckedImage", "PromptEvaluation", "check_images", "evaluate_prompts", "other_captions"]
