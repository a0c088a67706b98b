"""How good a text-to-image model is: tools/evaluate.py generator, and the verdicts that the demonstration shows."""

from parti.evaluation.judging import JudgedPicture, PromptEvaluation, evaluate_prompts, judge_pictures, other_captions

__all__ = ["JudgedPicture", "PromptEvaluation", "evaluate_prompts", "judge_pictures", "other_captions"]
