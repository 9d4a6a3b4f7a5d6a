"""Parts of a batch: blank ones, how this host's part becomes a global array; and what each host does on its own."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lape_jax.parallel import sharding


def blank(count: int, shapes: Mapping[str, jax.ShapeDtypeStruct], *, mask: float = 0.0) -> dict[str, np.ndarray]:
    """A part of a batch, `count` rows, without any example: zeros, but for the mask.

    Args:
        shapes: shape and type of one row of everything in a batch.
        mask: what stands in the mask.
    """
    zeros = {name: np.zeros((count, *row.shape), row.dtype) for name, row in shapes.items()}
    return zeros | {"mask": np.full(count, mask, np.float32)}


def place(array: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
    """This host's part of an array (all of it, if `where` replicates) as a global array on the devices."""
    with jax.transfer_guard_host_to_device("allow"):  # it is asked for here, though JAX takes only device_put for that
        return jax.make_array_from_process_local_data(where, array)


class OwnDevices:
    """What each of several processes does with examples of its own, on its own devices.

    Args:
        mesh: the mesh over all devices.

    Attributes:
        mesh: this process's part of it, all of whose devices share the batch; if there is one process, all of it.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        if jax.process_count() > 1:
            devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
            self.mesh = Mesh(np.array(devices).reshape(-1, 1, 1), mesh.axis_names, axis_types=mesh.axis_types)
        self._gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))

    def copy(self, variables: Any) -> Any:
        """The variables; if there are several processes, copies of them on the devices of this one."""
        if jax.process_count() == 1:
            return variables
        everywhere, devices = sharding.replicated(self.mesh), list(self.mesh.devices.flat)

        def own(leaf: jax.Array) -> jax.Array:
            copies = {shard.device: shard.data for shard in leaf.addressable_shards}
            return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, [copies[d] for d in devices])

        return jax.tree.map(own, self._gather(variables))
