"""Settings that a trainer refuses or warns of before it samples."""


def averaged_credit(trainer: str, loss_type: str, importance_sampling_level: str) -> str | None:
    """Returns a warning where a completion has one importance ratio, or None.

    The gradient of each of its tokens then has the mean of their weights, so that weights of mean 1 do nothing. Losses of
    log-probabilities (cispo, vespo) weigh tokens beside that ratio.
    """
    if importance_sampling_level != "sequence" or loss_type in ("cispo", "vespo"):
        return None
    return (
        f"importance_sampling_level is 'sequence' and loss_type {loss_type!r}: a completion's tokens share one ratio, and of the "
        f"token weights of {trainer} the gradient has their mean over the completion alone. For credit to tokens set "
        "importance_sampling_level='token', or loss_type 'cispo' or 'vespo'."
    )
