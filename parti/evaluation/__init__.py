"""How good a text-to-image model is: tools/evaluate.py generator, and the verdicts that the demonstration shows."""

from parti.evaluation.prompt_accuracy import (
    CheckedImage,
    PromptEvaluation,
    check_images,
    evaluate_prompts,
    other_captions,
)

__all__ = ["CheckedImage", "PromptEvaluation", "check_images", "evaluate_prompts", "other_captions"]
