"""What the networks of docs/results/applications.md are compared with: TF-IDF with logistic regression on the movie
snippets, 1-NN with dynamic time warping on series, and a classifier of single pixels' colours on images with masks.

    pip install scikit-learn aeon
    python scripts/application_baselines.py --movies data/movies
    python scripts/application_baselines.py --series OSULeaf_TRAIN.ts
    python scripts/application_baselines.py --pixels data/earth
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dwsep.training.data import load_mask_folder, load_series
from dwsep.training.data.text import read_table
from dwsep.training.metrics import EvaluationResult


def movies(folder: Path) -> None:
    """Accuracy of TF-IDF of words and pairs with logistic regression, fold by fold."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    scores = []
    for path in sorted(folder.glob("train-*.tsv")):
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=4.0, max_iter=1000)
        )
        model.fit(*read_table(path))
        texts, labels = read_table(path.with_name(path.name.replace("train", "test")))
        scores.append(100 * model.score(texts, labels))
        print(f"{path.name}: {scores[-1]:.2f} %")
    print(f"TF-IDF and logistic regression: {np.mean(scores):.2f} % +- {np.std(scores):.2f}")


def series(path: Path) -> None:
    """Accuracy of the nearest neighbour by dynamic time warping, with a window of a tenth of the length."""
    from aeon.distances import dtw_distance

    train, test = (load_series(path, split) for split in ("train", "test"))

    def rows(data):
        return [v[:, ~np.isnan(v).all(0)].astype(np.float64) for v in data.values.numpy()]

    window = None if path.stem.startswith("Japanese") else 0.1  # too short, and too unlike in length, for a window
    references, right = rows(train), 0
    for row, label in zip(rows(test), test.labels.tolist(), strict=True):
        distances = [dtw_distance(row, other, window=window) for other in references]
        right += train.labels[int(np.argmin(distances))].item() == label
    print(f"1-NN DTW on {path.stem}: {100 * right / len(test):.2f} %")


def pixels(folder: Path) -> None:
    """Intersection over union of logistic regression on a pixel's colour and its squares."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    def read(split: str):
        data = load_mask_folder(folder, split)
        return data.images.permute(0, 2, 3, 1).reshape(-1, 3).numpy() / 255.0, data.masks.flatten().numpy(), data

    x, y, data = read("train")
    chosen = np.random.default_rng(0).choice(len(x), 300_000, replace=False)
    model = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(x[chosen], y[chosen])
    for split in ("val", "test"):
        x, y, data = read(split)
        k = data.num_classes
        confusion = np.bincount(y.astype(np.int64) * k + model.predict(x), minlength=k * k).reshape(k, k)
        result = EvaluationResult(0.0, 0.0, torch.from_numpy(confusion))
        named = ", ".join(f"{n} {100 * v:.1f}" for n, v in zip(data.class_names, result.class_iou, strict=True))
        print(f"colour of single pixels, {split}: mIoU {100 * result.mean_iou:.2f} % ({named})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, run in (("movies", movies), ("series", series), ("pixels", pixels)):
        parser.add_argument(f"--{name}", type=Path, help=run.__doc__)
    arguments = parser.parse_args()
    for name, run in (("movies", movies), ("series", series), ("pixels", pixels)):
        if getattr(arguments, name) is not None:
            run(getattr(arguments, name))


if __name__ == "__main__":
    main()
