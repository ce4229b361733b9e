"""Any image model of timm as a backbone."""

from __future__ import annotations

import difflib
import re
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rectrio_lib.core.errors import ArgumentError, needing
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.encoders.backbone import Backbone, GeM
from rectrio_lib.encoders.weights import State, find_state, load_weights


class MapsToGeM(nn.Module):
    """A convolutional network of timm whose last maps are pooled by GeM, in the place of its own pooling."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.pool = model, GeM()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C)."""
        return self.pool(self.model.forward_features(images)).flatten(1)


def timm_module() -> ModuleType:
    """Import timm, or say how to install it."""
    with needing("A backbone timm:NAME", "timm"):
        import timm
    return timm


def check_name(network: str) -> None:
    """Refuse what timm does not know, and name the nearest of what it does."""
    timm = timm_module()
    architecture, _, tag = network.partition(".")
    if timm.is_model(architecture):
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        if not tag or tag in tags:
            return
        raise ArgumentError(
            f"timm knows no weights {tag!r} of {architecture}: choose one of {', '.join(tags) or 'none'}."
        )
    near = difflib.get_close_matches(architecture, timm.list_models(), 5, 0.5)
    raise ArgumentError(f"timm has no model {architecture!r}: the nearest names are {', '.join(near) or 'none'}.")


def timm_backbone(network: str, pooling: str = "average", state: State | None = None, where: str = "") -> Backbone:
    """Build a model of timm with what it takes: its pixels, its pooling, its blocks; with weights, or random ones.

    Vision transformers take any size that their patches divide: their positions are interpolated. So resolution=224
    makes a DINOv2 network, whose own size is 518, five times as fast.

    Args:
        network: its name in timm, such as "vit_small_patch14_dinov2.lvd142m".
        pooling: "average" for that of the model (of a transformer often its class token), or "gem", for maps alone.
        state: weights by timm's own names; a classifier of another size is passed over.
        where: what the message calls them.

    Raises:
        ArgumentError: if the model gives no pooled features, or no maps to pool by GeM.
        DataError: if the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, dynamic = _create(network)
    if state is not None:
        load_weights(model, _with_classifier(model, state), where)
    return _as_backbone(network, model, dynamic, pooling)


def find_timm_state(network: str, workspace: Workspace | None = None) -> tuple[State | None, str]:
    """Find weights as `find_state` does, by a file in the weights folder, else by timm's own loader."""
    workspace = workspace or Workspace()

    def fetched() -> State:
        return timm_module().create_model(network, pretrained=True, cache_dir=workspace.weights / "timm").state_dict()

    return find_state(f"timm:{network}", fetched, workspace)


def _create(network: str) -> tuple[nn.Module, bool]:
    """Build a model with its classifier, and tell whether it takes images of any size."""
    timm = timm_module()
    try:
        return timm.create_model(network, dynamic_img_size=True, dynamic_img_pad=True), True
    except TypeError:  # only transformers know the options
        return timm.create_model(network), False


def _with_classifier(model: nn.Module, state: State) -> State:
    """Take the classifier from the model: it is dropped anyway, and a file may have another or none."""
    named = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    return {key: value for key, value in state.items() if not key.startswith(prefixes)} | own


def _as_backbone(network: str, model: nn.Module, dynamic: bool, pooling: str) -> Backbone:
    config = timm_module().data.resolve_model_data_config(model)
    side, pixels = config["input_size"][-1], {key: tuple(config[key]) for key in ("mean", "std")}
    model.reset_classifier(0)
    features, maps, spatial = _probe(model.eval(), side)
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or not features.shape[1]:
        raise ArgumentError(f"timm:{network} gives no pooled features (B, D): it cannot be a backbone.")
    has_maps = isinstance(maps, torch.Tensor) and maps.ndim == 4 and maps.shape[1] == model.num_features
    gem = pooling == "gem"
    if gem and not has_maps:
        shape = tuple(maps.shape) if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise ArgumentError(
            f"pooling='gem' pools maps (B, C, h, w), but timm:{network} gives {shape}: leave pooling at 'average'."
        )
    blocks, tail = _blocks(model, "model." if gem else "")
    network_, tail = (MapsToGeM(model), [*tail, "pool"]) if gem else (model, tail)
    spatial = f"{'model.' if gem else ''}{spatial}" if has_maps and spatial else ""
    return Backbone(network_, blocks, tail, spatial, side, not (dynamic or has_maps), pixels)


@torch.no_grad()
def _probe(model: nn.Module, side: int) -> tuple[Any, Any, str]:
    """Return pooled features, what lies before the pooling, and the name of the module that this comes from."""
    image, made = torch.zeros(1, 3, side, side), []
    hooks = [
        module.register_forward_hook(lambda module, given, output, name=name: made.append((name, output)))
        for name, module in model.named_modules()
        if name
    ]
    maps = model.forward_features(image)
    for hook in hooks:
        hook.remove()
    return model(image), maps, next((name for name, output in made if output is maps), "")


def _blocks(model: nn.Module, prefix: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the names of the parameters of each block, first to last, by timm's own matcher, and of what follows them.

    A last group without a number in its names, such as "head.norm", is no block.
    """
    from timm.models._manipulate import group_parameters

    groups = [
        tuple(prefix + name for name in names) for names in group_parameters(model, model.group_matcher()).values()
    ]
    tail = [] if re.search(r"\d", "".join(name.removeprefix(prefix) for name in groups[-1])) else [*groups.pop()]
    return groups, tail
