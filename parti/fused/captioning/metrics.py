"""Caption metrics: whether a caption describes its image, and its similarity to reference captions.

`describes` asks the data set's checker (`vqgan.metrics.caption_checkers`) whether the image shows what the caption
says. It does not compare texts: either of two objects may be named first.

BLEU (Papineni et al. 2002) and CIDEr-D (Vedantam et al., 1411.5726) are those of COCO's evaluation code
(pycocoevalcap). METEOR (Banerjee and Lavie 2005) is nltk's without WordNet: words match if they or their stems are
equal, synonyms do not, so it is called meteor_like. COCO tokenizes captions with a Java program; here words are
lower-cased runs of letters and digits. Both libraries are in the extra `captions`.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from PIL import Image

from vqgan.metrics.caption_checkers import CaptionChecker

_LIBRARIES = ("pycocoevalcap", "nltk")


def describes(check_image: CaptionChecker, image: Image.Image, caption: str) -> bool:
    """Returns whether `image` shows what `caption` says; false for a caption that the checker cannot parse."""
    try:
        return check_image(image, caption)
    except ValueError:
        return False


def can_compare_texts() -> bool:
    """Returns whether the libraries of `compare_texts` are installed."""
    return all(find_spec(library) is not None for library in _LIBRARIES)


def compare_texts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns BLEU-1 and BLEU-4 of the corpus in [0, 1], mean CIDEr-D in [0, 10], mean METEOR without synonyms in
    [0, 1].

    `references` are the true captions of each image, one or more. CIDEr weights words by inverse document frequency,
    so it means little for a handful of images. Raises ValueError unless every caption has a reference.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise ValueError(
            f"{len(captions)} captions and {len(references)} lists of references: give each caption at least one"
        )
    from nltk.translate.meteor_score import meteor_score
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    predicted = {number: [" ".join(words(caption))] for number, caption in enumerate(captions)}
    true = {number: [" ".join(words(text)) for text in texts] for number, texts in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(true, predicted, verbose=0)
    cider, _ = Cider().compute_score(true, predicted)
    meteor = [
        meteor_score([text.split() for text in true[number]], predicted[number][0].split(), wordnet=_NoSynonyms())
        for number in predicted
    ]
    return {
        "bleu_1": float(bleu[0]),
        "bleu_4": float(bleu[3]),
        "cider": float(cider),
        "meteor_like": sum(meteor) / len(meteor),
    }


def words(text: str) -> list[str]:
    """Returns a caption's words, without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", text.lower())


class _NoSynonyms:
    """Replaces WordNet, which nltk would have to download."""

    def synsets(self, _word: str) -> list[object]:
        return []
