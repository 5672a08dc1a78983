"""The patch embedding of a vision tower as a matrix product."""

from torch import Tensor, nn
from torch.nn.functional import linear


class PatchProjection(nn.Conv3d):
    """A convolution whose input is one patch of the size of its kernel, computed as  flatten(x) @ flatten(weight).T + bias.

    Parameters, their names and their gradients are those of the convolution. PyTorch 2.9 and later run a Conv3d in bfloat16
    on a slow path, on which the patches of a clip can cost more than all blocks of the tower.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """Project patches (N,C,T,H,W) of the kernel's size to (N,D,1,1,1); other sizes go through the convolution."""
        if patches.shape[2:] != self.kernel_size:
            return super().forward(patches)
        return linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def project_patches(model: nn.Module) -> None:
    """Compute the patch embeddings of a model's vision tower with [`PatchProjection`]; nothing else changes."""
    for module in model.modules():
        if (
            type(module) is nn.Conv3d
            and module.groups == 1
            and set(module.padding) == {0}
            and set(module.dilation) == {1}
        ):
            module.__class__ = PatchProjection
