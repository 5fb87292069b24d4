"""TF-IDF with a linear SVM on the sixteen tasks of FDU-MTL: a model for each task, and one for all.

    pip install scikit-learn; python benchmarks/fdu_svm.py

Words and pairs of words, C chosen on the last 200 examples of train. Test error in percent, over all test examples and
over those whose text is not in train. Needs $MTL_JAX_DATA/fdu_mtl.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

FOLDER = pathlib.Path(os.environ.get("MTL_JAX_DATA", "../shared/data")) / "fdu_mtl"
DEV = 200  # last examples of train
COSTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def read(file: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Texts, and labels bool [N]; a line without a text is left out."""
    lines = [line.partition("\t") for line in file.read_text("latin-1").split("\n") if line.strip()]
    pairs = [(text.strip(), label.strip() == "1") for label, _, text in lines if text.strip()]
    return [text for text, _ in pairs], np.array([label for _, label in pairs])


def errors(train: tuple[list[str], np.ndarray], dev: list, test: list) -> np.ndarray:
    """Error of each test set, float [n, 2]: all examples, and those whose text is not in train or dev."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    features = vectorizer.fit_transform(train[0])
    dev_features = [vectorizer.transform(texts) for texts, _ in dev]

    def dev_error(cost: float) -> tuple[float, LinearSVC]:
        model = LinearSVC(C=cost).fit(features, train[1])
        return np.mean([np.mean(model.predict(x) != y) for x, (_, y) in zip(dev_features, dev, strict=True)]), model

    _, model = min((dev_error(cost) for cost in COSTS), key=lambda pair: pair[0])
    seen = {*train[0], *(text for texts, _ in dev for text in texts)}
    result = []
    for texts, labels in test:
        wrong = model.predict(vectorizer.transform(texts)) != labels
        result.append([wrong.mean(), wrong[[text not in seen for text in texts]].mean()])
    return np.array(result)


def main() -> None:
    """Prints the table."""
    names = sorted(file.name.removesuffix(".task.train") for file in FOLDER.glob("*.task.train"))
    whole = {name: read(FOLDER / f"{name}.task.train") for name in names}
    train = {name: (texts[:-DEV], labels[:-DEV]) for name, (texts, labels) in whole.items()}
    dev = {name: (texts[-DEV:], labels[-DEV:]) for name, (texts, labels) in whole.items()}
    test = {name: read(FOLDER / f"{name}.task.test") for name in names}
    single = np.concatenate([errors(train[name], [dev[name]], [test[name]]) for name in names])
    texts = [text for name in names for text in train[name][0]]
    pooled = errors(
        (texts, np.concatenate([train[name][1] for name in names])), list(dev.values()), list(test.values())
    )
    print(f"{'test error, %':22} {'single':>7} {'unseen':>7} {'pooled':>7} {'unseen':>7}")
    for i, name in enumerate(names):
        print(f"{name:22} " + " ".join(f"{100 * value:7.1f}" for value in (*single[i], *pooled[i])))
    means = (*single.mean(axis=0), *pooled.mean(axis=0))
    print(f"{'mean':22} " + " ".join(f"{100 * value:7.2f}" for value in means))


if __name__ == "__main__":
    main()
