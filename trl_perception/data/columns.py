"""Dataset columns as the package reads them."""

from typing import Any

from datasets import Video


def undecoded_videos(dataset: Any) -> Any:
    """Return the dataset with `Video` columns as `{"path", "bytes"}`, to be decoded with the package's own sampling.

    A `datasets.Video` feature decodes every frame on access, with a backend that may not be installed. A dataset
    without such a column is returned unchanged; None and dictionaries of datasets are accepted.
    """
    if isinstance(dataset, dict):
        return type(dataset)({name: undecoded_videos(part) for name, part in dataset.items()})
    for column, feature in (getattr(dataset, "features", None) or {}).items():
        raw = _undecoded(feature)
        if raw is not feature:
            dataset = dataset.cast_column(column, raw)
    return dataset


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, Video):
        return Video(decode=False) if feature.decode else feature
    if isinstance(feature, dict):
        raw = {key: _undecoded(value) for key, value in feature.items()}
        return raw if any(raw[key] is not feature[key] for key in raw) else feature
    inner = getattr(feature, "feature", None)  # List, LargeList, Sequence
    if inner is not None:
        raw = _undecoded(inner)
        return feature if raw is inner else type(feature)(raw)
    return feature
