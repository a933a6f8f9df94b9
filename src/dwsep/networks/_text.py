"""What the networks for text share: all but their blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dwsep.networks import _parts, _sequence
from dwsep.networks._dense import dense_twin_


class TextClassifier(nn.Module):
    """Token embedding, blocks over (N, C, 1, L), attention pooling, classifier.

    Args:
        num_classes: Number of logits.
        vocabulary_size: Number of tokens, padding (0) and unknown (1) among them.
        channels: C.
        blocks: Modules that keep the shape.
        dropout: Probability of dropping an element of embedding and pooled features.
        dense: Whether the blocks become their dense twins.
    """

    def __init__(
        self,
        num_classes: int,
        vocabulary_size: int,
        channels: int,
        blocks: Iterable[nn.Module],
        dropout: float,
        dense: bool,
    ) -> None:
        super().__init__()
        _parts.check_counts(num_classes=num_classes, vocabulary_size=vocabulary_size)
        _parts.check_switches(dense=dense)
        self.embedding = nn.Embedding(vocabulary_size, channels, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=channels**-0.5)[0] = 0
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*blocks)
        self.pool = _sequence.AttentionPool(channels)
        self.classifier = nn.Linear(channels, num_classes)
        _parts.init_classifier_(self.classifier)
        if dense:
            dense_twin_(self.blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify texts.

        Args:
            tokens: Shape (N, L), int64, padded with 0 at the end.

        Returns:
            Logits of shape (N, num_classes).
        """
        keep = _sequence.unless_all((tokens != 0)[:, None, None])
        # (N, L, C) seen as (N, C, 1, L) is channels last already.
        x = self.dropout(self.embedding(tokens)).transpose(1, 2).unsqueeze(2)
        x = _sequence.run_masked(self.blocks, x, keep)
        return self.classifier(self.dropout(self.pool(x, keep)))
