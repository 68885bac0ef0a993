import torch
from sklearn.linear_model import LogisticRegression

from fashion_lit.data.sources.synthetic import SyntheticGarments


def test_drawings_are_a_function_of_the_seed() -> None:
    one, again = (SyntheticGarments(num_train=60, num_test=20).load() for _ in range(2))
    other = SyntheticGarments(num_train=60, num_test=20, drawing_seed=1).load()
    assert torch.equal(one[0].images, again[0].images)
    assert torch.equal(one[1].labels, again[1].labels)
    assert not torch.equal(one[0].images, other[0].images)


def test_classes_are_balanced_and_train_and_test_differ() -> None:
    train, test = SyntheticGarments(num_train=205, num_test=205).load()
    assert train.images.shape == (205, 28, 28)
    assert train.images.dtype == torch.uint8
    counts = train.labels.bincount()
    assert sorted(counts.tolist()) == [20] * 5 + [21] * 5
    assert not torch.equal(train.images, test.images)


def test_garments_are_recognisable_but_not_trivial() -> None:
    train, test = SyntheticGarments(num_train=2000, num_test=500).load()
    model = LogisticRegression(max_iter=200)
    model.fit(train.images.flatten(1).numpy() / 255, train.labels.numpy())
    accuracy = model.score(test.images.flatten(1).numpy() / 255, test.labels.numpy())
    assert 0.5 < accuracy < 0.9  # a CNN's accuracy: tests/end_to_end/test_train.py
