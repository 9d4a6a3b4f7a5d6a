"""The whole augmentation of a training batch, from uint8 pixels to normalised images and soft targets."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lape_jax.augment import canvas, crop, erase, geometry, mix, photometric, policies
from lape_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")  # of the mesh: the batch is split over both, and repeated over the others
# Choices of `augment.order`: whether images are erased before they are mixed.
ERASE_FIRST = {"erase_then_mix": True, "mix_then_erase": False}

Stage = Callable[[jax.Array, jax.Array], jax.Array]  # (images (b, h, w, c), keys (b,)) -> images


def make(config: Any, *, num_classes: int, mesh: Mesh) -> Callable[[dict, jax.Array, Any], dict]:
    """The function (batch, key, mixing) -> batch that augments one global batch inside a jitted step.

    The order is timm's: crop, flip, policy, colour jitter in 8 bits; then normalise, erase and mix (DeiT and most), or
    mix in 8 bits, normalise and erase (T2T-ViT, Compact Transformers). Sources: `timm/data/transforms_factory.py`,
    `random_erasing.py` and `mixup.py`.

    The function takes {"image": uint8 (b, h, w, c), "label": int (b,), "mask": float (b,)}, rows split over the mesh
    axes data and fsdp. If there is "size", int (b, 2), images lie on canvases, uint8 (b, 3 side, side), to be cropped.
    It returns {"image": float32 (b, image_size, image_size, c), "target": float32 (b, num_classes), "label", "mask"},
    split likewise; labels and mask are unchanged. All randomness comes from `key`, that
    of a row from its position in the batch as well: results do not depend on the mesh. While `mixing` (a bool, may be
    traced) is false, mixup and CutMix rest, and labels are still smoothed.

    Args:
      config: with `data`, `augment` and `loss`, see `lape_jax.tasks.classify.task`. Images on canvases, and with
        `data.resident` all, are cropped here; others only padded and cropped, and a random-resized crop is the host's.
      num_classes: K.
      mesh: with axes data, fsdp, tensor.

    Raises:
      UserError: an unknown policy or interpolation; or as `check`.
    """
    data, augment = config.data, config.augment
    check(config)
    stages, erase_first = _pixel_stages(config), ERASE_FIRST[augment.order]
    mixed = augment.mixup > 0 or augment.cutmix > 0

    def shard(batch, positions, key, drawn):
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), len(stages) + 1))(positions)
        images, labels, mask = batch["image"], batch["label"], batch["mask"]
        if "size" in batch:
            images = canvas.random_resized_crop(images, batch["size"], keys[:, 0], **_crop(data))
        for number, stage in enumerate(stages):
            images = stage(images, keys[:, number]) if stage else images

        def finish(images):
            images = photometric.normalise(images, data.mean, data.std)
            return erase.random_erase(images, keys[:, -1], augment.erase_prob) if augment.erase_prob > 0 else images

        if erase_first:
            images = finish(images)
        if mixed:
            shards = mesh.shape["data"] * mesh.shape["fsdp"]
            partners, partner_labels, partner_mask = mix.reverse((images, labels, mask), BATCH_AXES, shards)
            images = mix.mix_images(images, partners, partner_mask, drawn)
            targets = mix.mix_targets(labels, partner_labels, partner_mask, drawn, num_classes)
        else:
            targets = jax.nn.one_hot(labels, num_classes)
        if not erase_first:
            images = finish(images)
        targets = mix.smooth(targets, config.loss.label_smoothing)
        return {"image": images, "target": targets, "label": labels, "mask": mask}

    rows, everywhere = PartitionSpec(BATCH_AXES), PartitionSpec()
    # Nothing in a shard depends on its place along "tensor", which the check of varying axes cannot always see.
    sharded = jax.shard_map(
        shard, mesh=mesh, in_specs=(rows, rows, everywhere, everywhere), out_specs=rows, check_vma=False
    )

    def apply(batch: dict, key: jax.Array, mixing: Any) -> dict:
        row_key, mix_key = jax.random.split(key)
        drawn = _draw(mix_key, mixing, data.image_size, augment) if mixed else None
        batch = {name: batch[name] for name in ("image", "label", "mask", "size") if name in batch}
        return sharded(batch, jnp.arange(len(batch["label"])), row_key, drawn)

    return apply


def check(config: Any) -> None:
    """Raises UserError for settings of `config.augment` that do not go together, or do not suit the images."""
    augment, channels = config.augment, config.data.channels
    if augment.color_jitter and augment.policy not in ("none", "three_augment"):
        raise UserError(
            f"config.augment.color_jitter is {augment.color_jitter}, but the policy {augment.policy!r} leaves it out: "
            f"set it to 0"
        )
    if channels != 3 and (augment.policy != "none" or augment.color_jitter):
        given = f"policy {augment.policy!r}" if augment.policy != "none" else f"color_jitter {augment.color_jitter}"
        raise UserError(
            f"config.augment.{given} needs colour images, and config.data.channels is {channels}: set policy to 'none' "
            f"and color_jitter to 0"
        )


def describe(config: Any) -> str:
    """What augmentation is on, in one line for the log."""
    data, augment, parts = config.data, config.augment, []
    if data.pad:
        parts.append(f"crop after padding by {data.pad}")
    elif _resizes(data):
        parts.append(
            f"random-resized crop of area {_range(data.scale)} and ratio {_range(data.ratio)} "
            f"({data.interpolation}, {'device' if data.resident or canvas.on_canvas(data) else 'host'})"
        )
    if augment.flip:
        parts.append("flip")
    if augment.policy != "none":
        parts.append(augment.policy)
    if augment.color_jitter > 0:
        parts.append(f"colour jitter {augment.color_jitter:g}")
    erasing = [f"erase {augment.erase_prob:g}"] if augment.erase_prob > 0 else []
    mixes = [f"{name} {alpha:g}" for name, alpha in (("mixup", augment.mixup), ("CutMix", augment.cutmix)) if alpha > 0]
    mixing = [" or ".join(mixes)] if mixes else []
    if mixing and augment.mix_prob < 1:
        mixing[0] += f" for {100 * augment.mix_prob:g} % of the batches"
    if len(mixes) == 2:
        mixing[0] += f" ({100 * augment.mix_switch_prob:g} % CutMix)"
    parts += erasing + mixing if ERASE_FIRST[augment.order] else mixing + erasing
    if config.loss.label_smoothing > 0:
        parts.append(f"label smoothing {config.loss.label_smoothing:g}")
    return ", ".join(parts) or "none"


def _pixel_stages(config: Any) -> tuple[Stage | None, ...]:
    """Crop, flip, policy and colour jitter; None for what is off, so that the keys of the others stay as they are."""
    data, augment = config.data, config.augment
    random_crop = None
    if data.pad:
        random_crop = functools.partial(crop.pad_and_crop, pad=data.pad, fill=0)
    elif data.resident and _resizes(data):
        random_crop = functools.partial(crop.random_resized_crop, **_crop(data))
    flip = geometry.random_flip if augment.flip else None
    jitter = policies.make_color_jitter(augment.color_jitter) if augment.color_jitter > 0 else None
    return random_crop, flip, _policy(config), jitter


def _crop(data: Any) -> dict[str, Any]:
    return {"size": data.image_size, "scale": data.scale, "ratio": data.ratio, "interpolation": data.interpolation}


def _policy(config: Any) -> Stage | None:
    data, name = config.data, config.augment.policy
    if name == "none":
        return None
    fill = tuple(round(255 * mean) for mean in data.mean)
    try:
        return policies.make(name, fill=fill, interpolation=data.interpolation)
    except UserError as error:
        raise UserError(f"config.augment.policy: {error}") from error


def _draw(key: jax.Array, mixing: Any, size: int, augment: Any) -> mix.Mix:
    drawn = mix.draw(
        key,
        size,
        size,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch_prob,
    )
    return mix.choose(mixing, drawn, mix.unmixed(size, size))


def _resizes(data: Any) -> bool:
    return (tuple(data.scale), tuple(data.ratio)) != ((1.0, 1.0), (1.0, 1.0))


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}"
